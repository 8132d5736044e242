"""Published data sets as they lie under the data root."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

from m2d_bench.errors import DataError
from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Part, Task


def locate(task: Task, data: Path | None) -> tuple[Path, Layout]:
    """The first folder under the data root that holds one of the task's layouts.

    Raises:
        DataError: None does, or a part of the data set is missing there.
    """
    if data is None:
        raise DataError(
            f"{task.name}: needs its data set from {task.source}. Unpack it anywhere and name the folder that holds it "
            "with --data DIR or the environment's M2D_BENCH_DATA."
        )
    if not data.is_dir():
        raise DataError(f"{task.name}: the data folder {data} does not exist. Name one with --data or M2D_BENCH_DATA.")
    folder = home(task, data)
    if folder.is_dir():
        require(task, folder)
    if found := _found(task, data):
        return found
    looked = ", ".join(str(root / layout.index) for root, layout in _places(task, data))
    raise DataError(
        f"{task.name}: not found. Looked for {looked}. Name the folder that holds {task.layouts[0].folders[0]}, or "
        f"that folder itself. It comes from {task.source}; m2d-bench tasks download {task.name} fetches it, or says "
        "what only you can get."
    )


def home(task: Task, data: Path) -> Path:
    """The folder of a task's data set: where a layout's index lies, or by its name, whether it is there or not."""
    named = [root for root, layout in _places(task, data) if layout == task.layouts[-1] and root != data]
    there = next((folder for folder in named if folder.is_dir()), None)
    found = _found(task, data)
    if found and not (there and found[0] == data and lacking(task, data)):  # the index lies beside the data set
        return found[0]
    return there or named[0]


def lacking(task: Task, folder: Path) -> list[Part]:
    """The parts of a task's data set that are missing from its folder."""
    return [part for part in task.parts if not part.lies_in(folder)]


def require(task: Task, folder: Path) -> None:
    """Raises a DataError of the parts of a task's data set that are missing from its folder."""
    if missing := lacking(task, folder):
        command = f"Run m2d-bench tasks download {task.name}, or get" if any(part.files for part in missing) else "Get"
        sources = ", ".join(f"{part} from {part.manual or next(iter(part.files))}" for part in missing)
        raise DataError(
            f"{task.name}: {folder} lacks {', '.join(map(str, missing))}. {command} {sources} and put "
            f"{'it' if len(missing) == 1 else 'them'} there."
        )


def _found(task: Task, data: Path) -> tuple[Path, Layout] | None:
    """The first folder that holds the index of one of the task's layouts."""
    return next(((root, layout) for root, layout in _places(task, data) if (root / layout.index).is_file()), None)


def _places(task: Task, data: Path) -> Iterator[tuple[Path, Layout]]:
    """Where a task's data set may lie, by the layout it then has; last, where names are alike (see `_plain`)."""
    for layout in task.layouts:
        for root in (*(data / folder for folder in layout.folders), data):
            yield root, layout
    alike = {_plain(name): name for name in (sorted(os.listdir(data)) if data.is_dir() else ())}
    for layout in task.layouts:
        for folder in layout.folders:
            top, _, below = folder.partition("/")
            if name := alike.get(_plain(top)):
                yield data / name / below, layout


def _plain(name: str) -> str:
    """A name in small letters without what separates its words."""
    return re.sub("[-_ ]", "", name).lower()


def read_entries(task: Task, root: Path, layout: Layout) -> list[Entry]:
    """The lines of an index that belong to the task."""
    split = task.folds.column if task.folds else "split"
    named = [name for _, name, _, _ in Formatter().parse(layout.file) if name]
    table = index.read_columns(root / layout.index, [task.label, split, *named, *(layout.where or ())[:1]])
    if layout.where:
        table = table[table[layout.where[0]] == layout.where[1]]
    return [
        index.entry(
            layout.file.format_map(row),
            row[task.label].split(",") if task.multilabel else [row[task.label]],
            row[split],
        )
        for row in table.to_dict("records")
    ]
