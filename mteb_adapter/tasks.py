"""Names → mteb's audio-only tasks and benchmarks, and one's own tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m2d_bench.encoders import foreign
from m2d_bench.errors import UsageError
from m2d_bench.mteb_adapter.encoder import import_mteb
from m2d_bench.registry import resolve, unknown


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of mteb.

    Args:
        make: Its class. Tasks hold random state: each evaluation makes its own.
        fingerprint: Revision of its data set and, of one's own task, a digest of its code.
    """

    make: Any
    fingerprint: str


def known() -> dict[str, Any]:
    """The classes of mteb's audio-only tasks, by name."""
    mteb = import_mteb()
    classes = resolve("mteb.get_tasks:TASK_LIST")
    chosen = mteb.filter_tasks(classes, modalities=["audio"], exclusive_modality_filter=True, exclude_aggregate=True)
    return {task.metadata.name: task for task in chosen}


def benchmarks() -> dict[str, list[str]]:
    """Task names of mteb's audio-only benchmarks, by each of their names without a comma, which separates --tasks."""
    return {
        name: [task.metadata.name for task in benchmark.tasks]
        for benchmark in import_mteb().get_benchmarks()
        if all(task.metadata.modalities == ["audio"] for task in benchmark.tasks)
        for name in (benchmark.name, *(benchmark.aliases or ()))
        if "," not in name
    }


def get_all(names: str | Sequence[str]) -> dict[str, Task]:
    """The tasks behind names.

    Args:
        names: One or several: of tasks, of benchmarks, or `FILE.py:CLASS` and `MODULE:CLASS` for one's own.

    Raises:
        UsageError: An unknown name, none, or code that is no audio-only task.
    """
    if not names:
        raise UsageError("Which tasks of mteb? Name them with --tasks; m2d-bench mteb tasks lists them.")
    names = [names] if isinstance(names, str) or not isinstance(names, Sequence) else names
    classes = known()
    tasks: dict[str, Task] = {}
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"Tasks of mteb are given by name, such as ESC50 or FILE.py:CLASS; got {name!r}.")
        if foreign.is_reference(name):
            tasks[name] = _own(name)
            continue
        members = [name] if name in classes else benchmarks().get(name)
        if members is None:
            see = "m2d-bench mteb tasks, or give FILE.py:CLASS"
            raise unknown("audio task of mteb", name, [*classes, *benchmarks()], see)
        for member in members:
            tasks[member] = Task(make=classes[member], fingerprint=classes[member].metadata.revision)
    return tasks


def find(name: str) -> Any:
    """mteb's task of a name, of any modality; None if it has none."""
    try:
        return import_mteb().get_task(name)
    except KeyError:
        return None


def _own(name: str) -> Task:
    """Somebody's task."""
    make, module = foreign.look_up(name, "task", "class")
    is_task = isinstance(make, type) and issubclass(make, import_mteb().AbsTask)
    if not is_task:
        raise UsageError(f"{name} is no task of mteb: it must be a class over one of mteb.abstasks, got {make!r}.")
    if make.metadata.modalities != ["audio"]:
        raise UsageError(f"{name} is of {', '.join(make.metadata.modalities)}; encoders of m2d-bench take audio alone.")
    code = hashlib.sha256(foreign.code_of(module)).hexdigest()[:8]
    return Task(make=make, fingerprint=f"{make.metadata.revision}-{code}")
