"""mteb's evaluation of our encoders, each task a run record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from m2d_bench import runs
from m2d_bench.encoders.foreign import explained
from m2d_bench.encoders.protocol import Encoder, SceneEncoder, facts_of
from m2d_bench.errors import M2DBenchError
from m2d_bench.mteb_adapter import records, tasks
from m2d_bench.mteb_adapter.encoder import import_mteb, load, model_meta
from m2d_bench.mteb_adapter.tasks import Task
from m2d_bench.runs import Run, TasksFailed
from m2d_bench.settings import Compute, Storage, command_line, file_name, make_folder


@dataclass(frozen=True, kw_only=True)
class MTEBSettings(Compute, Storage):
    """What the encoder runs on, and the folders; mteb keeps its results in the cache."""


def evaluate(
    model: str | os.PathLike[str] | SceneEncoder, task_names: Sequence[str], settings: MTEBSettings = MTEBSettings()
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
    make_folder(settings.runs_root)
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
    mteb = import_mteb()
    meta = model_meta(encoder, settings)
    cache = mteb.ResultCache(settings.cache_root / "mteb" / file_name(f"{mteb.__version__}-{task.fingerprint}"))
    with explained(f"{name} in mteb", None):
        made = task.make()
        mteb.evaluate(meta, made, cache=cache, encode_kwargs={"batch_size": settings.batch_size}, co2_tracker=False)
    run = records.read(cache.get_task_result_path(made.metadata.name, meta), made)
    return replace(
        run,
        encoder=facts_of(encoder),
        task={**run.task, "fingerprint": task.fingerprint},
        environment=runs.environment(str(settings.torch_device())),
    )
