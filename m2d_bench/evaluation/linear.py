"""Linear evaluation: frozen embeddings of each task, a probe for every seed and fold, one record a task."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from m2d_bench import runs, tasks
from m2d_bench.encoders import zoo
from m2d_bench.encoders.protocol import Encoder, SceneEncoder, facts_of, wrap
from m2d_bench.errors import M2DBenchError
from m2d_bench.evaluation import embeddings
from m2d_bench.evaluation.embeddings import Embeddings
from m2d_bench.evaluation.probes import run_probes
from m2d_bench.evaluation.problems import ProbeResult, Problem
from m2d_bench.evaluation.settings import LinearSettings, ProbeSettings
from m2d_bench.progress import bar
from m2d_bench.randomness import generator_of
from m2d_bench.registry import check_names
from m2d_bench.runs import Predictions, Run, Score, TasksFailed
from m2d_bench.settings import command_line, make_folder
from m2d_bench.tasks import dataset as datasets
from m2d_bench.tasks.dataset import Dataset
from m2d_bench.tasks.splits import VALIDATION_FRACTION, draw_validation, draws_validation, splits
from m2d_bench.tasks.task import Task

logger = logging.getLogger(__name__)


def linear(
    model: str | os.PathLike[str] | SceneEncoder = zoo.DEFAULT,
    task_names: str | Sequence[str] = tasks.BUILT_IN,
    settings: LinearSettings = LinearSettings(),
    **changes: Any,
) -> list[Run]:
    """Evaluates an encoder on tasks; finished seeds are read from their records instead of computed.

    Args:
        model: A model's name (see `zoo.load`), or anybody's encoder (see `encoders.protocol.wrap`), which keeps its own
            device and precision.
        task_names: Names of tasks (see `tasks.get`), as a list or separated by commas; the built-in ones by default.
        settings: How to evaluate.
        changes: Fields of the settings to change, such as `seeds=3` or `data="/data"`.

    Returns:
        One record a task, with the scores of the seeds asked for.

    Raises:
        UsageError, DataError: Unknown model, task or setting, or a task's folder that cannot be read; nothing was
            computed.
        TasksFailed: Some tasks failed, after the others were done; it carries their records.

    Source: M2D-X (2024), section IV-B; BYOL-A (arXiv 2103.06695).
    """
    check_names("setting", changes, [field.name for field in fields(LinearSettings)], "m2d-bench linear --help")
    settings = replace(settings, **changes)
    chosen = tasks.get_all(task_names, settings, clip_seconds=settings.clip_seconds)
    make_folder(settings.runs_root)
    loaded = zoo.load(model, compute=settings, storage=settings) if isinstance(model, str | os.PathLike) else model
    encoder = wrap(loaded)
    records: list[Run] = []
    failures: dict[str, Exception] = {}
    for name, task in chosen.items():
        words = ["linear", "--model", str(model), "--tasks", name]
        command = "" if loaded is model else command_line(words, settings, leaving_out=("force",))
        try:
            records.append(_evaluate(encoder, task, settings, command))
        except (M2DBenchError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failures[task.name] = error
    if failures:
        raise TasksFailed(failures, records)
    return records


def _evaluate(encoder: Encoder, task: Task, settings: LinearSettings, command: str) -> Run:
    """One task: its record with the scores of all seeds asked for."""
    dataset = datasets.load(task, settings, encoder.sample_rate, settings.jobs).readable(settings.on_bad_file)
    run = replace(_blank_run(encoder, dataset, settings), command=command)
    n_folds = run.task["n_folds"]
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    if not run.repeated and len(seeds) > 1:
        logger.warning("%s: %s on an official split repeats nothing; one seed is run.", task.name, settings.probe)
        seeds = seeds[:1]
    stored = runs.find(run, settings.runs_root)
    finished = stored.done(n_folds) if stored else set()
    if settings.keep_predictions:
        predictions = runs.load_predictions(run.path(settings.runs_root))
        counts = Counter(prediction.seed for prediction in predictions)
        finished = {seed for seed in finished if counts[seed] >= n_folds}
    missing = [seed for seed in seeds if settings.force or seed not in finished]
    if missing:
        started = time.perf_counter()
        embedded = embeddings.encode(encoder, dataset, settings, settings)
        run = replace(run, seconds={"embedding": round(time.perf_counter() - started, 3)})
        record = _recorder(run, settings, dataset)
        problems = list(_problems(dataset, embedded, missing, settings.train_fraction))
        with bar(f"Probing {task.name}", len(problems) * settings.epochs, "epochs") as advance:
            run_probes(
                embedded.features,
                torch.from_numpy(dataset.labels)[embedded.clips],
                problems,
                settings,
                metrics=(task.metric, *task.other_metrics),
                compute=settings,
                on_result=record,
                progress=advance,
            )
    return runs.load_as(run, settings.runs_root).limited_to(seeds)


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
        runs.add(replace(run, scores=tuple(_score(result, seconds) for result in results)), settings.runs_root)
        if settings.keep_predictions:
            for result in results:
                runs.save_predictions(run, settings.runs_root, _predictions(result, dataset))

    return record


def _score(result: ProbeResult, seconds: float) -> Score:
    return Score(
        seed=result.seed,
        fold=result.fold,
        score=result.score,
        n_test=result.n_test,
        seconds=seconds,
        valid_score=max(result.valid_scores),
        chosen=result.chosen,
        others=result.others,
    )


def _predictions(result: ProbeResult, dataset: Dataset) -> Predictions:
    clips = (dataset.splits == result.fold).nonzero()[0]
    return Predictions(
        seed=result.seed,
        fold=result.fold,
        clips=clips,
        labels=dataset.labels[clips],
        scores=result.logits.numpy(),
        valid_scores=np.asarray(result.valid_scores),
        classes=np.asarray(dataset.classes),
    )


def _problems(dataset: Dataset, embedded: Embeddings, seeds: Sequence[int], train_fraction: float) -> Iterator[Problem]:
    """The training runs: every seed on every fold, or on the official split.

    Training and validation see a clip's crop, the test its start.
    """
    labels, crops = torch.from_numpy(dataset.labels), embedded.crop_rows
    for seed in seeds:
        for split in splits(dataset, seed):
            train = split.train
            if train_fraction < 1:  # every class that has two clips keeps one
                generator = generator_of(seed, split.fold, "training clips")
                _, train = draw_validation(labels, train, train_fraction, generator)
            yield Problem(seed, split.fold, train=crops[train], valid=crops[split.valid], test=split.test)


def _blank_run(encoder: Encoder, dataset: Dataset, settings: LinearSettings) -> Run:
    """The record of this evaluation, without scores."""
    repeated: tuple[str, ...] = ("initialisation", "shuffling") if settings.probe == "linear" else ()
    drawn = draws_validation(dataset)
    repeated += ("validation split",) if drawn else ()
    repeated += ("training clips",) if settings.train_fraction < 1 else ()
    probe: dict[str, Any] = {"probe": settings.probe}
    if settings.probe == "linear":
        probe = {field.name: getattr(settings, field.name) for field in fields(ProbeSettings)}
        probe["probe_precision"] = settings.resolved_precision()
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
