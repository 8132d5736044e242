"""What `m2d-bench` can be told to do: each verb a few lines over a public function, returning what is printed."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from pydantic import Field
from tabulate import tabulate

from m2d_bench import audio, tasks
from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.baseline import NAME as LOG_MEL
from m2d_bench.encoders.checkpoint import Checkpoint
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.errors import UsageError
from m2d_bench.evaluation import linear as evaluation
from m2d_bench.evaluation import predict as predicting
from m2d_bench.evaluation.embeddings import check_output, embed_files, write_embeddings
from m2d_bench.evaluation.settings import LinearSettings
from m2d_bench.output import Flat, Names, Output
from m2d_bench.registry import resolve
from m2d_bench.runs import Run, TasksFailed
from m2d_bench.settings import Compute, Storage
from m2d_bench.values import Checked


def linear(
    *,
    model: str = zoo.DEFAULT,
    task_names: Annotated[tuple[str, ...], Parameter("--tasks"), Names] = tasks.BUILT_IN,
    baseline: str | None = None,
    style: Annotated[str, Parameter(name="--format")] = "text",
    settings: Annotated[LinearSettings, Flat] = LinearSettings(),
) -> Output:
    """Evaluate an encoder on tasks: mean ± 95% CI over seeds.

    Args:
        model: m2d_tiny, a released name, a path, your own FILE.py:NAME, …; see m2d-bench models.
        task_names: Names separated by commas or spaces, see m2d-bench tasks; your own data by its path, FOLDER of class
            folders or FILE.csv; hear:PATH, a HEAR task folder; evar:PATH, a metadata file of EVAR (no comma in a path).
            Without it the built-in ones, and logmel and m2d_tiny beside the model (beside m2d_tiny random weights).
        baseline: Another model, evaluated on the same seeds; --seeds until=WIDTH ends them when the two are compared.
        style: text, md, csv, json, latex or html.
        settings: How to evaluate.
    """
    by_layer = settings.layer == "all"
    beside = task_names == tasks.BUILT_IN and baseline is None and settings.own_embedding
    render = resolve(f"m2d_bench.results:{'overview' if beside else 'layer_report' if by_layer else 'report'}")
    resolve("m2d_bench.results:check_format")(style)
    runs: list[Run] = []
    failures: dict[str, None] = {}
    for name in _with_references(model) if beside else [model]:
        try:
            runs += evaluation.linear(name, task_names, settings, baseline)
        except TasksFailed as error:
            runs += error.runs
            failures |= dict.fromkeys(error.messages)
        if not runs:  # references alone tell nothing of the model
            break
    if by_layer:
        resolve("m2d_bench.results.plots.curves:draw_layers")(runs, settings.runs_root)
    text = render(runs, style) if runs else ""
    if beside and text and style == "text":
        text += f"\n{_next_steps(settings.runs_root)}"
    return Output(text, tuple(failures))


def _with_references(model: str) -> list[str]:
    """The model, and what shows how far it has come: m2d_tiny, or its random weights, and the log-mel."""
    other = f"{zoo.RANDOM}{zoo.DEFAULT}" if model == zoo.DEFAULT else zoo.DEFAULT
    return list(dict.fromkeys((model, other, LOG_MEL)))


def _next_steps(folder: Path) -> str:
    """The line below the first table: where the records lie, and what to try next."""
    words = ["m2d-bench", "report", *([] if folder == Path(Storage.runs) else [str(folder)])]
    return f"Records: {folder}. Next: {shlex.join(words)}; linear --model own.py:Own --tasks DIR"


def embed(
    files: tuple[Path, ...],
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    model: str = zoo.DEFAULT,
    compute: Annotated[Compute, Flat] = Compute(),
    storage: Annotated[Storage, Flat] = Storage(),
) -> Output:
    """Write one embedding a sound file.

    Args:
        files: Sound files of any length and rate, or folders of them, searched with their subfolders.
        output: .npz (arrays files [N] and embeddings [N, D]) or .parquet (one row a file).
        model: m2d_tiny, a released name, a path, your own FILE.py:NAME, …; see m2d-bench models.
        compute: Device, precision, batch size, decoding threads.
        storage: Cache folder of the weights.
    """
    output = output.expanduser()
    check_output(output)
    encoder = zoo.load(model, compute=compute, storage=storage)
    sounds, missing = _sound_files(files)
    embedded, embeddings, failures = embed_files(encoder, sounds, compute)
    if not embedded:
        return Output("", (*missing, *failures))
    write_embeddings(output, embedded, embeddings, encoder)
    return Output(f"{output}: {len(embedded)} embeddings of {embeddings.shape[1]} numbers", (*missing, *failures))


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Checked):
    """What a fine-tuned model may not say of its head.

    Args:
        classes: CSV file that names the classes: AudioSet's class_labels_indices.csv, or one with a column name.
        multilabel: Whether a clip may have several classes.
        clip_seconds: Duration of the clips it was trained on; shorter files are zero-padded to it.
    """

    classes: Path | None = None
    multilabel: Annotated[bool | None, Parameter(negative="--single-label")] = None
    clip_seconds: Annotated[float | None, Field(ge=0, le=86400)] = None


def predict(
    model: str,
    files: tuple[Path, ...],
    /,
    *,
    top: int = 5,
    head: Annotated[HeadSettings, Flat] = HeadSettings(),
    style: Annotated[str, Parameter(name="--format")] = "text",
    compute: Annotated[Compute, Flat] = Compute(),
    storage: Annotated[Storage, Flat] = Storage(),
) -> Output:
    """Tell the classes of sound files with a fine-tuned model.

    Args:
        model: What m2d-bench finetune wrote, or a released name of a fine-tuned model; see m2d-bench models.
        files: Sound files of any length and rate, or folders of them, searched with their subfolders.
        top: Classes a file, the most probable first.
        head: What the model does not say of its head.
        style: text, csv, or jsonl, a line of JSON a file.
        compute: Device, precision, batch size, decoding threads.
        storage: Cache folder of the weights.
    """
    predicting.check_format(style)
    names = predicting.read_classes(head.classes.expanduser()) if head.classes else None
    classifier = zoo.load_classifier(
        model,
        classes=names,
        multilabel=head.multilabel,
        clip_seconds=head.clip_seconds,
        compute=compute,
        storage=storage,
    )
    sounds, missing = _sound_files(files)
    predictions, failures = predicting.predict_files(classifier, sounds, compute, top)
    return Output(predicting.render(predictions, style) if predictions else "", (*missing, *failures))


def _sound_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The paths, with the sound files of a folder in its place; and a message for each folder that has none
    or cannot be listed."""
    sounds: list[Path] = []
    failures: list[str] = []
    for path in paths:
        if not os.path.isdir(path):  # unlike Path.is_dir, of any name
            sounds.append(path)
            continue
        inside, others, unlisted = audio.find_sounds(path)
        audio.warn_of_others(path, others)
        sounds += [path / name for name in inside]
        failures += [f"{path / name}: {reason}" for name, reason in unlisted]
        if not inside and not unlisted:
            failures.append(f"{path}: no sound files, in subfolders neither.")
    return sounds, failures


MODELS = App(name="models", help="List the models, or show what one holds.")


@MODELS.default
def list_models(*, storage: Annotated[Storage, Flat] = Storage()) -> Output:
    """List the models that have a name.

    Args:
        storage: Cache folder of the weights.
    """
    folder = storage.cache_root / "weights"
    rows = [{"model": zoo.DEFAULT, "where": "in this package", "what": "M2D of size tiny, pre-trained on free audio"}]
    for release in zoo.RELEASED.values():
        where = "in the cache" if (folder / release.name).is_dir() else f"download ({release.tag})"
        rows.append({"model": release.name, "where": where, "what": release.about})
    text = tabulate(rows, headers="keys", tablefmt="simple")
    forms = tabulate(zoo.FORMS.items(), headers=("or", "what"), tablefmt="simple")
    return Output(f"{text}\n\n{forms}\n\nReleased weights are under {zoo.LICENCE}; they are kept in {folder}.")


@MODELS.command(name="show")
def show_model(model: str, /, *, storage: Annotated[Storage, Flat] = Storage()) -> Output:
    """Show a model's configuration, its digest and what was read.

    Args:
        model: m2d_tiny, a released name, a path, or random:NAME.
        storage: Cache folder of the weights.
    """
    loaded = zoo.read(model, storage=storage)
    encoder = M2DEncoder.from_checkpoint(loaded)
    facts = {
        "name": loaded.config.name,
        "digest": encoder.digest,
        "parameters": sum(tensor.numel() for tensor in loaded.encoder.values()),
        "scene_embedding_size": encoder.scene_embedding_size,
        "timestamp_embedding_size": encoder.timestamp_embedding_size,
        "hop_ms": encoder.hop_ms,
        "config": asdict(loaded.config),
        "read": _inventory(loaded),
    }
    return Output(json.dumps(facts, indent=2))


@MODELS.command(name="convert")
def convert_model(
    model: str,
    output: Path,
    /,
    *,
    encoder_only: bool = False,
    half: bool = False,
    storage: Annotated[Storage, Flat] = Storage(),
) -> Output:
    """Write a model as .pth in the released format, or as .safetensors with the configuration inside.

    Args:
        model: m2d_tiny, a released name, a path, or random:NAME.
        output: The file.
        encoder_only: Leave out predictor, target encoder, projections and head.
        half: Round the weights to float16.
        storage: Cache folder of the weights.
    """
    output = output.expanduser()
    loaded = zoo.read(model, storage=storage)
    if encoder_only:
        loaded = replace(loaded, extras={}, head={}, labels=None)
    checkpoint.save(loaded.half() if half else loaded, output)
    again = checkpoint.read(output).config
    if replace(again, name=loaded.config.name) != loaded.config:
        output.unlink()
        raise UsageError(
            f"{output}: would not be read as what it is: a .pth file says its sample rate and input size by its "
            f"folder's name alone. Name it {loaded.config.name.removeprefix('random:')}, or write .safetensors."
        )
    return Output(f"{output}: {len(loaded.encoder)} tensors of the encoder, {len(loaded.extras)} others")


def _inventory(loaded: Checkpoint) -> dict[str, object]:
    """Numbers of tensors by kind."""
    extras = Counter(key.split(".")[0] for key in loaded.extras)
    return {
        "encoder": len(loaded.encoder),
        "extras": dict(extras),
        "head": {key: list(tensor.shape) for key, tensor in loaded.head.items()},
        "classes": list(loaded.labels.classes) if loaded.labels else [],
        "ignored": list(loaded.ignored),
    }
