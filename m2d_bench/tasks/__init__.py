"""The tasks by name. Reading one opens no file; only one that is named by a path reads its index."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from m2d_bench.errors import UsageError
from m2d_bench.registry import resolve, unknown
from m2d_bench.settings import Storage
from m2d_bench.tasks.task import Entry, Folds, Layout, Task

BUILT_IN = ("events", "gm_family", "gm_pitch", "espeak_words", "espeak_language", "espeak_voice")
"""Synthetic tasks, generated on first use; they need no download, only the extra `demo`."""

NAMES = (
    *BUILT_IN,
    *("esc10", "esc50", "us8k", "fsd50k", "fsdnoisy18k", "as20k", "as2m"),
    *("spcv1", "spcv2", "vc1", "voxforge", "cremad", "cremad_gender", "vocalsound"),
    *("gtzan", "nsynth", "nsynth_pitch", "surge"),
    *("icbhi2017", "sprsound"),
)

FORMATS = {
    "own": "m2d_bench.tasks.own:read",
    "evar": "m2d_bench.tasks.evar:read",
    "hear": "m2d_bench.tasks.hear:read",
}
"""Tasks in files, named `format:PATH`: what reads one. The path of one's own data needs no format before it."""

FORMS = {
    "FOLDER": "your own data: FOLDER/CLASS/*.wav, or with train, valid, test (or fold1, fold2, …) above the classes",
    "FILE.csv": "your own data: columns file_name and label, more in docs/your-data.md",
    "hear:PATH": "a HEAR task folder",
    "evar:PATH": "a metadata file of EVAR",
}
"""Other names of tasks, and what they are."""


def get(name: str, storage: Storage = Storage()) -> Task:
    """The task of this name.

    Args:
        name: One of NAMES; the path of one's own data, see `tasks.own`; or a format of FORMATS, a colon and a path.
        storage: Its cache remembers the clips of a task whose unit duration is theirs; its data folder is where the
            files of one's own table may lie.

    Raises:
        UsageError: No such task; suggests the nearest names.
        DataError: The task at the path cannot be read or evaluated.
    """
    prefix, _, path = name.partition(":")
    if name not in NAMES and os.path.exists(os.path.expanduser(name)):
        prefix, path = "own", name
    if path and prefix in FORMATS:
        found: Task = resolve(FORMATS[prefix])(path, storage)
        return found
    if name not in NAMES:
        raise _unknown(name, storage)
    task: Task = resolve(f"m2d_bench.tasks.{name}:TASK")
    return task


def _unknown(name: str, storage: Storage) -> UsageError:
    """The error for a name that is none, with the data that may have been meant."""
    places = [name.partition(":")[2], f"{name}.csv", *([str(storage.data_root / name)] if storage.data_root else [])]
    meant = [place for place in places if place and os.path.exists(place)]
    hint = f"your own data is {meant[0]}" if meant else "your own data is the path of a folder or CSV file"
    return unknown("task", name, NAMES, f"m2d-bench tasks; {hint}, see docs/your-data.md")


def get_all(
    names: str | Sequence[str],
    storage: Storage = Storage(),
    find: Callable[[str, Storage], Task] = get,
    clip_seconds: float | None = None,
) -> dict[str, Task]:
    """Tasks by the names given, in their order, each once.

    Args:
        names: As a list, or in a text separated by commas; a path in a list may hold commas.
        storage: As of `get`.
        find: Gives the task of a name.
        clip_seconds: Unit duration of all of them; by default each has its own.

    Raises:
        UsageError, DataError: As of `get`; or no name at all.
    """
    parts = names.split(",") if isinstance(names, str) else names
    found = dict.fromkeys(name.strip() for name in parts if name.strip())
    if not found:
        raise UsageError("No task named. See m2d-bench tasks.")
    return {name: find(name, storage).lasting(clip_seconds) for name in found}


__all__ = ["BUILT_IN", "FORMATS", "FORMS", "NAMES", "Entry", "Folds", "Layout", "Task", "get", "get_all"]
