"""mteb's evaluation of our encoders, each task a run record."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from m2d_bench import runs
from m2d_bench.encoders.foreign import explained
from m2d_bench.encoders.protocol import Encoder, SceneEncoder, facts_of
from m2d_bench.errors import DataError, M2DBenchError
from m2d_bench.mteb_adapter import records, tasks
from m2d_bench.mteb_adapter.encoder import import_mteb, load, model_meta
from m2d_bench.mteb_adapter.tasks import Task
from m2d_bench.runs import Run, TasksFailed
from m2d_bench.settings import Compute, Storage, command_line, file_name, make_cache, make_folder


@dataclass(frozen=True, kw_only=True)
class MTEBSettings(Compute, Storage):
    """What the encoder runs on, and the folders; mteb keeps its results in the cache."""


def evaluate(
    model: str | os.PathLike[str] | SceneEncoder,
    task_names: str | Sequence[str],
    settings: MTEBSettings = MTEBSettings(),
) -> list[Run]:
    """Has mteb evaluate an encoder; what it finished before is read from its results.

    Args:
        model: A model's name (see `zoo.load`), or anybody's encoder, which keeps its own device and precision.
        task_names: Of tasks, see `tasks.get_all`.
        settings: What the encoder runs on, and the folders.

    Returns:
        One record a task.

    Raises:
        UsageError: Unknown model or task, or mteb is not installed; nothing was computed.
        TasksFailed: Some tasks failed, after the others were done; it carries their records.
    """
    chosen = tasks.get_all(task_names)
    make_cache(settings.cache_root)
    make_folder(settings.runs_root, "--runs")
    encoder = load(model, settings, settings)
    done: list[Run] = []
    failures: dict[str, Exception] = {}
    for name, task in chosen.items():
        words = ["mteb", "--model", str(model), "--tasks", name]
        command = command_line(words, settings) if isinstance(model, str | os.PathLike) else ""
        try:
            run = replace(_evaluate(encoder, name, task, settings), command=command)
            done.append(runs.add(run, settings.runs_root))
        except (M2DBenchError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failures[name] = error
    if failures:
        raise TasksFailed(failures, done)
    return done


def _evaluate(encoder: Encoder, name: str, task: Task, settings: MTEBSettings) -> Run:
    """One task; each version of mteb and of the task has a folder of results, for mteb would take those of any."""
    mteb, shown = import_mteb(), sys.stderr.isatty()
    meta = model_meta(encoder, settings)
    cache = mteb.ResultCache(settings.cache_root / "mteb" / file_name(f"{mteb.__version__}-{task.fingerprint}"))
    encode = {"batch_size": settings.batch_size, "show_progress_bar": shown}
    with explained("mteb", None), _hub_named():
        made = task.make()
        mteb.evaluate(meta, made, cache=cache, encode_kwargs=encode, co2_tracker=False, show_progress_bar=shown)
    run = records.read(cache.get_task_result_path(made.metadata.name, meta), made)
    return replace(
        run,
        encoder=facts_of(encoder),
        task={**run.task, "fingerprint": task.fingerprint},
        environment=runs.environment(str(settings.torch_device())),
    )


@contextmanager
def _hub_named() -> Iterator[None]:
    """Says of a data set that cannot be fetched what is the same for all of them."""
    try:
        yield
    except ConnectionError as error:
        raise DataError("Its data set is not there yet, and the Hugging Face Hub cannot be reached.") from error
