"""Linear evaluation: frozen embeddings of each task, a probe for every seed and fold, one record a task."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from m2d_bench import runs, tasks
from m2d_bench.encoders import zoo
from m2d_bench.encoders.protocol import Encoder, SceneEncoder, facts_of, wrap
from m2d_bench.errors import M2DBenchError, UsageError
from m2d_bench.evaluation import embeddings
from m2d_bench.evaluation.embeddings import Embeddings
from m2d_bench.evaluation.metrics import per_class
from m2d_bench.evaluation.probes import run_probes
from m2d_bench.evaluation.problems import ProbeResult, Problem
from m2d_bench.evaluation.representations import Kept, Representation, asked, kept_for
from m2d_bench.evaluation.settings import LEAST_SEEDS, MIXING_LEARNING_RATE, LinearSettings, ProbeSettings
from m2d_bench.progress import bar
from m2d_bench.randomness import generator_of
from m2d_bench.registry import check_names, resolve
from m2d_bench.runs import Predictions, Run, Score, TasksFailed
from m2d_bench.settings import command_line, make_cache, make_folder
from m2d_bench.tasks import dataset as datasets
from m2d_bench.tasks.dataset import Dataset
from m2d_bench.tasks.splits import VALIDATION_FRACTION, draw_validation, draws_validation, splits
from m2d_bench.tasks.task import Task

logger = logging.getLogger(__name__)

_FEATURE_BYTES = 2**31
"""Of features of several layers in memory at a time."""


def linear(
    model: str | os.PathLike[str] | SceneEncoder = zoo.DEFAULT,
    task_names: str | Sequence[str] = tasks.BUILT_IN,
    settings: LinearSettings = LinearSettings(),
    baseline: str | os.PathLike[str] | SceneEncoder | None = None,
    **changes: Any,
) -> list[Run]:
    """Evaluates an encoder on tasks; finished seeds are read from their records instead of computed.

    Args:
        model: A model's name (see `zoo.load`), or anybody's encoder (see `encoders.protocol.wrap`), which keeps its own
            device and precision.
        task_names: Names of tasks (see `tasks.get`), as a list or separated by commas; the built-in ones by default.
        settings: How to evaluate.
        baseline: Another one, evaluated on the same seeds; with `seeds="until=0.5"` they end when the two are compared.
        changes: Fields of the settings to change, such as `seeds=3` or `data="/data"`.

    Returns:
        One record a task and encoder, or one a task, pooling and layer, with the scores of the seeds asked for.

    Raises:
        UsageError, DataError: Unknown model, task or setting, or a task's folder that cannot be read; nothing was
            computed.
        TasksFailed: Some tasks failed, after the others were done; it carries their records.

    Source: M2D-X (2024), section IV-B; BYOL-A (arXiv 2103.06695).
    """
    check_names("setting", changes, [field.name for field in fields(LinearSettings)], "m2d-bench linear --help")
    settings = replace(settings, **changes)
    if baseline is not None and (settings.layer == "all" or len(settings.pooling) > 1):
        raise UsageError("A baseline is compared in one embedding of each encoder. Name one layer and one pooling.")
    chosen = tasks.get_all(task_names, settings, clip_seconds=settings.clip_seconds)
    make_cache(settings.cache_root)
    make_folder(settings.runs_root, "--runs")
    models = {"--model": model} if baseline is None else {"--model": model, "--baseline": baseline}
    encoders = [wrap(_load(each, settings)) for each in models.values()]
    wanted = [asked(settings, encoder) for encoder in encoders]
    records: list[Run] = []
    failures: dict[str, Exception] = {}
    for name, task in chosen.items():
        words = _words({**models, "--tasks": name})
        try:
            evaluators = [_evaluator(*each, task, settings, words) for each in zip(encoders, wanted, strict=True)]
            records += _repeat(evaluators, settings)
        except (M2DBenchError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failures[task.name] = error
    if failures:
        raise TasksFailed(failures, records)
    return records


def _words(options: Mapping[str, object]) -> list[str]:
    """Of the command that repeats an evaluation; none if an encoder has no name."""
    named = all(isinstance(value, str | os.PathLike) for value in options.values())
    return ["linear", *(str(word) for option in options.items() for word in option)] if named else []


def _load(model: str | os.PathLike[str] | SceneEncoder, settings: LinearSettings) -> SceneEncoder:
    """The encoder of a name, or the one given."""
    changes = {"encoding": settings.encoding} if settings.encoding else {}
    if isinstance(model, str | os.PathLike):
        return zoo.load(model, compute=settings, storage=settings, **changes)
    if changes:
        raise UsageError(
            "encoding is a setting of models of the M2D family that are loaded by name: "
            f"linear(load_encoder(name, encoding={settings.encoding!r}), …)."
        )
    return model


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    """One record to make.

    Args:
        representation: What its probes are given.
        run: The record without scores.
        missing: Seeds to compute.
    """

    representation: Representation
    run: Run
    missing: Sequence[int]


def _repeat(evaluators: Sequence[Callable[[range], list[Run]]], settings: LinearSettings) -> list[Run]:
    """The records of a task with as many seeds as are asked for, or as it takes."""

    def of_seeds(count: int) -> list[Run]:
        seeds = range(settings.first_seed, settings.first_seed + count)
        return [run for evaluate in evaluators for run in evaluate(seeds)]

    if isinstance(settings.seeds, int):
        return of_seeds(settings.seeds)
    enough, count = resolve("m2d_bench.results.stopping:enough"), LEAST_SEEDS
    while not enough(records := of_seeds(count), settings.until, compared=len(evaluators) > 1):
        count += 1
    return records


def _evaluator(
    encoder: Encoder, wanted: Sequence[Representation], task: Task, settings: LinearSettings, words: Sequence[str]
) -> Callable[[range], list[Run]]:
    """What evaluates an encoder on one task: seeds → a record of each representation, with the scores of these seeds.

    Args:
        encoder: The encoder.
        wanted: What probes are given.
        task: The task.
        settings: How to evaluate.
        words: Of the command that repeats it; none if it has no name.
    """
    dataset = datasets.find_all(task, settings, encoder.sample_rate, settings.jobs)
    if task.huge:
        first = [each for each in wanted if each.pooling == wanted[0].pooling]
        kept = kept_for(encoder, first, round(task.clip_seconds * encoder.sample_rate))
        embeddings.encode_unread(encoder, dataset, settings, settings, kept)
    dataset.warn()
    dataset = dataset.readable(settings.on_bad_file)
    blank = _blank_run(encoder, dataset, settings)
    blanks = []
    for representation in wanted:
        run = replace(blank, settings={**blank.settings, **representation.facts})
        if words:
            own = replace(settings, **_options(representation))
            run = replace(run, command=command_line(words, own, leaving_out=("force",)))
        blanks.append((representation, run))
    forced = set[int]()  # seeds that are not computed anew again

    def evaluate(seeds: range) -> list[Run]:
        if not blank.repeated and len(seeds) > 1:
            logger.warning("%s: %s on an official split repeats nothing; one seed is run.", task.name, settings.probe)
            seeds = seeds[:1]
        evaluations = [
            _Evaluation(representation=representation, run=run, missing=_missing(run, settings, seeds, forced))
            for representation, run in blanks
        ]
        to_do = [each for each in evaluations if each.missing]
        for _, alike in groupby(to_do, key=lambda each: each.representation.pooling):
            _probe(encoder, dataset, settings, list(alike))
        forced.update(seeds)
        return [runs.load_as(run, settings.runs_root).limited_to(seeds) for _, run in blanks]

    return evaluate


def _options(representation: Representation) -> dict[str, Any]:
    """The settings that ask for one representation alone."""
    pooling = representation.facts.get("pooling")
    return {"layer": representation.layer, "pooling": (pooling,) if pooling else ()}


def _missing(run: Run, settings: LinearSettings, seeds: Sequence[int], forced: set[int]) -> list[int]:
    """The seeds that a record lacks, or is to have anew and has not yet."""
    n_folds = run.task["n_folds"]
    stored = runs.find(run, settings.runs_root)
    finished = stored.done(n_folds) if stored else set()
    if settings.keep_predictions:
        predictions = runs.load_predictions(run.path(settings.runs_root))
        counts = Counter(prediction.seed for prediction in predictions)
        finished = {seed for seed in finished if counts[seed] >= n_folds}
    return [seed for seed in seeds if seed not in (forced if settings.force else finished)]


def _probe(encoder: Encoder, dataset: Dataset, settings: LinearSettings, evaluations: Sequence[_Evaluation]) -> None:
    """Computes what is missing of evaluations of one pooling, as many side by side as memory allows."""
    samples = round(dataset.task.clip_seconds * encoder.sample_rate)
    one = kept_for(encoder, [evaluations[0].representation], samples)
    clip_bytes = one.given(np.zeros((1, *one.shape), dtype=np.float32)).nbytes
    at_once = max(1, _FEATURE_BYTES // (clip_bytes * len(dataset.files)))
    for start in range(0, len(evaluations), at_once):
        together = evaluations[start : start + at_once]
        kept = kept_for(encoder, [each.representation for each in together], samples)
        _probe_together(encoder, dataset, settings, together, kept)


def _probe_together(
    encoder: Encoder, dataset: Dataset, settings: LinearSettings, evaluations: Sequence[_Evaluation], kept: Kept
) -> None:
    """Computes what is missing of evaluations side by side: each is given a view of the features."""
    started = time.perf_counter()
    embedded = embeddings.encode(encoder, dataset, settings, settings, kept)
    seconds = {"embedding": round(time.perf_counter() - started, 3)}
    recorders = [_recorder(replace(each.run, seconds=seconds), settings, dataset) for each in evaluations]
    problems = [
        problem
        for view, each in enumerate(evaluations)
        for problem in _problems(dataset, embedded, each.missing, settings.train_fraction, view)
    ]
    labels, clips = torch.from_numpy(dataset.labels), embedded.clips.repeat(len(evaluations))
    with bar(f"Probing {dataset.task.name}", len(problems) * settings.epochs, "epochs") as advance:
        run_probes(
            embedded.features,
            labels[clips] if len(clips) > len(labels) else labels,  # many classes of many clips take gigabytes
            problems,
            settings,
            metrics=(dataset.task.metric, *dataset.task.other_metrics),
            compute=settings,
            on_result=lambda result: recorders[result.view](result),
            progress=advance,
        )


def _recorder(run: Run, settings: LinearSettings, dataset: Dataset) -> Callable[[ProbeResult], None]:
    """A callback that writes a seed's scores into the record as soon as its last fold is done."""
    waiting: dict[int, list[ProbeResult]] = {}
    last = time.perf_counter()

    def record(result: ProbeResult) -> None:
        nonlocal last
        results = waiting.setdefault(result.seed, [])
        results.append(result)
        if len(results) < run.task["n_folds"]:
            return
        now = time.perf_counter()
        seconds, last = round((now - last) / len(results), 4), now
        scores = tuple(_score(result, dataset, seconds) for result in results)
        runs.add(replace(run, scores=scores), settings.runs_root)
        if settings.keep_predictions:
            for result in results:
                runs.save_predictions(run, settings.runs_root, _predictions(result, dataset))

    return record


def _score(result: ProbeResult, dataset: Dataset, seconds: float) -> Score:
    labels = torch.from_numpy(dataset.labels[_test_clips(result, dataset)])
    return Score(
        seed=result.seed,
        fold=result.fold,
        score=result.score,
        n_test=result.n_test,
        seconds=seconds,
        valid_score=max(result.valid_scores),
        chosen=result.chosen,
        others=result.others,
        per_class=per_class(result.logits, labels, dataset.classes),
    )


def _predictions(result: ProbeResult, dataset: Dataset) -> Predictions:
    clips = _test_clips(result, dataset)
    return Predictions(
        seed=result.seed,
        fold=result.fold,
        clips=clips,
        labels=dataset.labels[clips],
        scores=result.logits.numpy(),
        valid_scores=np.asarray(result.valid_scores),
        classes=np.asarray(dataset.classes),
    )


def _test_clips(result: ProbeResult, dataset: Dataset) -> np.ndarray:
    clips: np.ndarray = (dataset.splits == result.fold).nonzero()[0]
    return clips


def _problems(
    dataset: Dataset, embedded: Embeddings, seeds: Sequence[int], train_fraction: float, view: int = 0
) -> Iterator[Problem]:
    """The training runs on one of the representations: every seed on every fold, or on the official split.

    Training and validation see a clip's crop, the test its start.
    """
    first_row = view * len(embedded.clips)
    labels, crops = torch.from_numpy(dataset.labels), first_row + embedded.crop_rows
    for seed in seeds:
        for split in splits(dataset, seed):
            train = split.train
            if train_fraction < 1:  # every class that has two clips keeps one
                generator = generator_of(seed, split.fold, "training clips")
                _, train = draw_validation(labels, train, train_fraction, generator)
            test = first_row + split.test
            yield Problem(seed, split.fold, train=crops[train], valid=crops[split.valid], test=test, view=view)


def _blank_run(encoder: Encoder, dataset: Dataset, settings: LinearSettings) -> Run:
    """The record of this evaluation, without scores."""
    trained = settings.probe in ("linear", "attentive")
    repeated: tuple[str, ...] = ("initialisation", "shuffling") if trained else ()
    drawn = draws_validation(dataset)
    repeated += ("validation split",) if drawn else ()
    repeated += ("training clips",) if settings.train_fraction < 1 else ()
    probe: dict[str, Any] = {"probe": settings.probe}
    if trained:
        probe = {field.name: getattr(settings, field.name) for field in fields(ProbeSettings)}
        probe["probe_precision"] = settings.resolved_precision()
    if settings.probe == "attentive" or settings.layer == "weighted":
        probe["mixing_learning_rate"] = MIXING_LEARNING_RATE
    if settings.encoding == "one_pass":
        probe["encoding"] = settings.encoding
    return Run(
        encoder=facts_of(encoder),
        task=dataset.facts,
        protocol=settings.probe,
        settings={
            **probe,
            "clip_seconds": dataset.task.clip_seconds,
            "encoder_precision": encoder.precision,
            "validation_fraction": VALIDATION_FRACTION if drawn else None,
            "train_fraction": settings.train_fraction,
            **({"left_out": dataset.left_out} if dataset.left_out else {}),
        },
        repeated=repeated,
        environment=runs.environment(str(settings.torch_device())),
    )
