"""The tasks by name. Reading one opens no file; only one in another tool's format reads its index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from m2d_bench.errors import UsageError
from m2d_bench.registry import resolve, unknown
from m2d_bench.settings import Storage
from m2d_bench.tasks.task import Entry, Folds, Layout, Task

BUILT_IN = ("events", "gm_family", "gm_pitch", "espeak_words", "espeak_language", "espeak_voice")
"""Synthetic tasks, generated on first use; they need no download, only the extra `demo`."""

NAMES = (*BUILT_IN, "esc10", "esc50", "us8k")

FORMATS = {"evar": "m2d_bench.tasks.evar:read", "hear": "m2d_bench.tasks.hear:read"}
"""Tasks in another tool's files, named `format:PATH`: what reads one."""


def get(name: str, storage: Storage = Storage()) -> Task:
    """The task of this name.

    Args:
        name: One of NAMES, or a format of FORMATS, a colon and a path.
        storage: Its cache remembers the clips of a task whose unit duration is theirs.

    Raises:
        UsageError: No such task; suggests the nearest names.
        DataError: The task at the path cannot be read or evaluated.
    """
    prefix, _, path = name.partition(":")
    if path and prefix in FORMATS:
        found: Task = resolve(FORMATS[prefix])(path, storage.cache_root)
        return found
    if name not in NAMES:
        raise unknown("task", name, NAMES, "m2d-bench tasks")
    task: Task = resolve(f"m2d_bench.tasks.{name}:TASK")
    return task


def get_all(
    names: str | Sequence[str], storage: Storage = Storage(), find: Callable[[str, Storage], Task] = get
) -> dict[str, Task]:
    """Tasks by the names given, in their order, each once.

    Args:
        names: As a list, or separated by commas.
        storage: As of `get`.
        find: Gives the task of a name.

    Raises:
        UsageError, DataError: As of `get`; or no name at all.
    """
    parts = [names] if isinstance(names, str) else names
    found = dict.fromkeys(name.strip() for part in parts for name in part.split(",") if name.strip())
    if not found:
        raise UsageError("No task named. See m2d-bench tasks.")
    return {name: find(name, storage) for name in found}


__all__ = ["BUILT_IN", "FORMATS", "NAMES", "Entry", "Folds", "Layout", "Task", "get", "get_all"]
