"""Fine-tuning on tasks: a training for each seed and fold, one record a task."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from m2d_bench import tasks
from m2d_bench.errors import M2DBenchError
from m2d_bench.finetuning import recipe as own_recipes
from m2d_bench.finetuning.images import data as images
from m2d_bench.finetuning.images.job import ImageJob
from m2d_bench.finetuning.job import Job
from m2d_bench.finetuning.recipe import Recipe
from m2d_bench.finetuning.settings import FinetuneSettings
from m2d_bench.registry import unknown
from m2d_bench.runs import Run, TasksFailed
from m2d_bench.settings import command_line, make_cache, make_folder
from m2d_bench.tasks.task import Task
from m2d_bench.training.launch import launch


def finetune(
    model: str | os.PathLike[str],
    task_names: str | Sequence[str],
    recipe: str | Path | None = None,
    recipe_changes: Mapping[str, Any] | None = None,
    settings: FinetuneSettings = FinetuneSettings(),
    **changes: Any,
) -> list[Run]:
    """Fine-tunes a model on tasks; finished seeds and folds are read from their records instead of trained.

    Args:
        model: A model's name, see `zoo.load`; of tasks of images, a checkpoint, see `images.encoder.read`.
        task_names: Names of tasks (see `images.data.get`), as a list or separated by commas.
        recipe: Name of a recipe, or a YAML file; by default the task's own.
        recipe_changes: Values of the recipe to set.
        settings: What is trained and where it runs.
        changes: Fields of the settings to change, such as `seeds=1` or `data="/data"`.

    Returns:
        One record a task, with the scores of the seeds and folds asked for.

    Raises:
        UsageError, DataError, CheckpointError: Unknown model, task, recipe or setting; nothing was trained.
        TasksFailed: Some tasks failed, after the others were done; it carries their records.

    Source: M2D-X (2024), section IV-C and Table II.
    """
    known = [field.name for field in fields(FinetuneSettings)]
    for name in changes:
        if name not in known:
            raise unknown("setting", name, known, "m2d-bench finetune --help")
    settings = replace(settings, **changes)
    jobs: list[tuple[type[Job], str, Task, str, Recipe]] = []
    for name, task in tasks.get_all(task_names, settings, images.get, settings.clip_seconds).items():
        kind = ImageJob if name.startswith(images.PREFIX) else Job
        chosen = recipe or own_recipes.name_for(task.name, kind.recipe_type)
        jobs.append((kind, name, task, str(chosen), own_recipes.load(chosen, recipe_changes, kind.recipe_type)))
    pretrained = {kind: kind.read_model(model, settings) for kind, *_ in jobs}
    if any(task.generator for _, _, task, *_ in jobs):
        make_cache(settings.cache_root)
    make_folder(settings.runs_root, "--runs")
    make_folder(Path(settings.out).expanduser(), "--out")
    fabric = launch(settings.device, settings.precision)
    done: list[Run] = []
    failures: dict[str, Exception] = {}
    for kind, name, task, chosen, values in jobs:
        words = ["finetune", "--model", str(model), "--tasks", name, "--recipe", chosen]
        for key, value in (recipe_changes or {}).items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        command = command_line(words, settings, leaving_out=("folds", "force", "resume"))
        try:
            done.append(kind(fabric, pretrained[kind], task, values, settings, command).run())
        except (M2DBenchError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            if fabric.world_size > 1:  # the other processes wait for this one
                raise
            failures[task.name] = error
    if failures:
        raise TasksFailed(failures, done)
    return done
