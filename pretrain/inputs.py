"""What a pre-training begins from: clips, and what is seen beside them: labels, noise, a teacher, starting weights."""

# No postponed annotations here: the command line reads the types of Inputs.

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2d_bench import tasks
from m2d_bench.errors import UsageError, naming_option
from m2d_bench.pretrain import weights
from m2d_bench.pretrain.data import Source, open_source
from m2d_bench.pretrain.data.labels import add_labels
from m2d_bench.pretrain.data.noise import NoisySource
from m2d_bench.pretrain.data.sources import AudioSource, PreparedSource
from m2d_bench.pretrain.data.teachers import FrozenSource, SpeechTeacher, TaughtSource
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.pretrain.methods import m2d_x
from m2d_bench.pretrain.recipe import Recipe
from m2d_bench.settings import Compute, OnBadFile, Storage
from m2d_bench.tasks import dataset
from m2d_bench.values import Checked

logger = logging.getLogger(__name__)

View = Callable[[Source], Source]
"""Adds to clips what is seen beside them."""


@dataclass(frozen=True, kw_only=True)
class Inputs(Checked):
    """What a pre-training begins from.

    Args:
        data: What m2d-bench prepare wrote; a folder of sound files or images; a CSV file that lists .npy log-mels; or
            task:NAME, the clips of a built-in task.
        data_root: Folder that the paths of a CSV file are relative to; by default the one it lies in.
        labels: CSV file with the columns file_name and label, several labels separated by commas; for M2D-AS.
        noise: Background noise that noise_ratio mixes in; as --data.
        init: Model whose weights are the first ones: a released name, a path or random:NAME. Further pre-training has
            it as its teacher, too.
    """

    data: str = ""
    data_root: Path | None = None
    labels: Path | None = None
    noise: str | None = None
    init: str | None = None


def open_clips(inputs: Inputs, recipe: Recipe, storage: Storage, on_bad_file: OnBadFile) -> Source:
    """Opens the data.

    Raises:
        UsageError, DataError: It cannot be opened, or does not fit the recipe.
    """
    if not inputs.data:
        raise UsageError("Which data? --data FOLDER, such as m2d-bench prepare writes; or task:events to try it out.")
    with naming_option("--data", inputs.data):
        source = _open(inputs.data, recipe, storage, on_bad_file, inputs.data_root)
    if inputs.labels:
        with naming_option("--labels", inputs.labels):
            add_labels(source, inputs.labels)
    if source.channels != recipe.channels:
        raise UsageError(
            f"{inputs.data} has {source.channels} channels, the recipe {recipe.channels}: audio is of one, images of "
            "three (--recipe m2d_image)."
        )
    return source


def open_noise(inputs: Inputs, recipe: Recipe, storage: Storage, on_bad_file: OnBadFile) -> Source | None:
    """Opens the background noise, if the recipe mixes any in.

    Raises:
        UsageError: Noise without a ratio, or a ratio without noise.
        DataError: It cannot be opened.
    """
    if inputs.noise and recipe.noise_ratio:
        with naming_option("--noise", inputs.noise):
            return _open(inputs.noise, recipe, storage, on_bad_file)
    if inputs.noise:
        raise UsageError(
            f"--noise {inputs.noise} is mixed in by noise_ratio, which is 0. Set it: --set noise_ratio=0.2"
        )
    if recipe.noise_ratio:
        raise UsageError(
            f"noise_ratio={recipe.noise_ratio:g} mixes in noise, and there is none. Name --noise FOLDER, such as "
            "m2d-bench prepare writes; or --set noise_ratio=0."
        )
    return None


def with_noise(clips: Source, noise: Source | None, recipe: Recipe) -> Source:
    """The clips as the recipe's training sees them: with noise, if there is any."""
    return NoisySource(clips, noise, recipe.noise_ratio, recipe.seed) if noise else clips


def load_start(method: MaskedModel, inputs: Inputs, recipe: Recipe, storage: Storage) -> None:
    """Begins a method with the weights of the model that is named, if one is, and says what was loaded.

    Raises:
        UsageError, CheckpointError: They cannot be had, or do not fit.
    """
    if start := _start(inputs, recipe):
        with naming_option("--init", start):
            logger.warning("%s", weights.load(method, start, storage))


def _start(inputs: Inputs, recipe: Recipe) -> str | None:
    """Name of the model whose weights are the first ones: of further pre-training the recipe's teacher, if no other."""
    arguments = recipe.method_arguments
    further = isinstance(arguments, m2d_x.Arguments) and arguments.scenario == "regularisation"
    return inputs.init or (arguments.teacher if further else None)


def offline_task(
    inputs: Inputs, recipe: Recipe, source: Source, compute: Compute, storage: Storage
) -> tuple[Recipe, View]:
    """What the recipe's offline task is, if it has one.

    Args:
        inputs: Labels and starting weights.
        recipe: What is trained.
        source: The clips.
        compute: Device and precision of a teacher.
        storage: Cache of released weights.

    Returns:
        The recipe with its size, and the teacher that is really used; and a view that adds its targets.

    Raises:
        UsageError: Labels or a teacher are missing, or do not fit.
    """
    arguments = recipe.method_arguments
    if not isinstance(arguments, m2d_x.Arguments):
        return recipe, _as_they_are
    start, further = _start(inputs, recipe), arguments.scenario == "regularisation"
    used: dict[str, Any] = {"teacher": start} if further else {}
    view: View = _as_they_are
    if not arguments.m2d_weight:
        logger.warning("m2d_weight=0 leaves out the loss of M2D.")
    if arguments.offline_weight:
        more, view = _OFFLINE[arguments.scenario](inputs, recipe, source, compute, storage)
        used |= more
    else:
        fresh = " The first weights are random: --init names others." if further and not start else ""
        logger.warning("offline_weight=0 leaves out the offline task, %s.%s", arguments.scenario, fresh)
    return replace(recipe, arguments={**recipe.arguments, **used}), view


def _as_they_are(clips: Source) -> Source:
    return clips


_Offline = tuple[dict[str, Any], View]
"""Arguments of the recipe as they are really used, and a view."""


def _supervised(inputs: Inputs, recipe: Recipe, source: Source, compute: Compute, storage: Storage) -> _Offline:
    if not source.classes:
        raise UsageError(
            "scenario=supervised learns the clips' labels, and there are none. Name --labels FILE.csv with the columns "
            "file_name and label."
        )
    return {"offline_size": len(source.classes)}, _as_they_are


def _regularisation(inputs: Inputs, recipe: Recipe, source: Source, compute: Compute, storage: Storage) -> _Offline:
    start = _start(inputs, recipe)
    if not start:
        raise UsageError(
            "scenario=regularisation begins from weights that are its teacher, too: name them with --init, such as "
            "--init m2d_vit_base-80x200p16x4-230529."
        )
    with naming_option("--init", start):
        vit = weights.encoder_of(start, recipe.vit, storage)
    bf16 = compute.resolved_precision() == "bf16"
    size = vit.config.grid_size[0] * vit.config.width
    return {"offline_size": size}, lambda clips: FrozenSource(clips, vit, bf16)


def _distillation(inputs: Inputs, recipe: Recipe, source: Source, compute: Compute, storage: Storage) -> _Offline:
    arguments, columns, patch_frames = recipe.method_arguments, recipe.vit.grid_size[1], recipe.patch_size[1]
    if isinstance(source, PreparedSource) and (stored := source.teacher):
        if arguments.teacher and (arguments.teacher, arguments.teacher_layer) != (stored.name, stored.layer):
            raise UsageError(
                f"{inputs.data} holds features of {_spoken(stored.name, stored.layer)}, the teacher is "
                f"{_spoken(arguments.teacher, arguments.teacher_layer)}. Name the same, or prepare others: m2d-bench "
                "prepare --teacher …"
            )
        source.teach(columns, patch_frames)
        return {"offline_size": stored.size, "teacher": stored.name, "teacher_layer": stored.layer}, _as_they_are
    if not arguments.teacher:
        raise UsageError(
            "scenario=distillation learns a teacher's features: name it with --teacher, such as --teacher "
            "hf:facebook/hubert-base-ls960 --layer 9."
        )
    if not isinstance(source, AudioSource):
        raise UsageError(
            f"{inputs.data}: a teacher needs the sound itself, or its features. Name a folder of sound files; or write "
            "the features once: m2d-bench prepare --teacher …"
        )
    teacher = SpeechTeacher(arguments.teacher, arguments.teacher_layer, recipe.sample_rate, compute, storage)
    return {"offline_size": teacher.facts.size}, lambda clips: TaughtSource(clips, teacher, columns, patch_frames)


def _spoken(teacher: str, layer: int | None) -> str:
    return f"--teacher {teacher}" + (f" --layer {layer}" if layer else "")


_OFFLINE = {"supervised": _supervised, "distillation": _distillation, "regularisation": _regularisation}


def _open(data: str, recipe: Recipe, storage: Storage, on_bad_file: OnBadFile, root: Path | None = None) -> Source:
    """Opens a path, or the clips of task:NAME, made if need be."""
    kind, colon, name = data.partition(":")
    path = (
        dataset.load(tasks.get(name, storage), storage, 16000).root
        if colon and kind == "task"
        else Path(data).expanduser()
    )
    height, frames = recipe.input_size
    return open_source(path, frames, recipe.sample_rate, root=root, height=height, on_bad_file=on_bad_file)
