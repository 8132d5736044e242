"""The tasks by name. Reading one costs nothing: no file is opened before its clips are asked for."""

from __future__ import annotations

from m2d_bench.registry import resolve, unknown
from m2d_bench.tasks.task import Folds, Layout, Task

BUILT_IN = ("events", "gm_family", "gm_pitch", "espeak_words", "espeak_language", "espeak_voice")
"""Synthetic tasks, generated on first use; they need no download, only the extra `demo`."""

NAMES = (*BUILT_IN, "esc10", "esc50", "us8k")


def get(name: str) -> Task:
    """The task of this name.

    Raises:
        UsageError: No such task; suggests the nearest names.
    """
    if name not in NAMES:
        raise unknown("task", name, NAMES, "m2d-bench tasks")
    task: Task = resolve(f"m2d_bench.tasks.{name}:TASK")
    return task


__all__ = ["BUILT_IN", "NAMES", "Folds", "Layout", "Task", "get"]
