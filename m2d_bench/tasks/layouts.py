"""Published data sets as they lie under the data root."""

from __future__ import annotations

from pathlib import Path
from string import Formatter

from m2d_bench.errors import DataError
from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Task


def locate(task: Task, data: Path | None) -> tuple[Path, Layout]:
    """The first folder under the data root that holds one of the task's layouts.

    Raises:
        DataError: None does.
    """
    if data is None:
        raise DataError(
            f"{task.name}: needs its data set from {task.source}. Unpack it anywhere and name the folder that holds it "
            "with --data DIR or the environment's M2D_BENCH_DATA."
        )
    if not data.is_dir():
        raise DataError(f"{task.name}: the data folder {data} does not exist. Name one with --data or M2D_BENCH_DATA.")
    looked = []
    for layout in task.layouts:
        for root in (*(data / folder for folder in layout.folders), data):
            if (root / layout.index).is_file():
                return root, layout
            looked.append(str(root / layout.index))
    first = task.layouts[0]
    index_source = f", its {first.index} from {first.index_source}" if first.index_source else ""
    for root in (data / folder for folder in first.folders):
        if index_source and root.is_dir():
            raise DataError(
                f"{task.name}: {root} lacks {first.index}. Get it from {first.index_source} and put it there."
            )
    raise DataError(
        f"{task.name}: not found. Looked for {', '.join(looked)}. Name the folder "
        f"that holds {first.folders[0]}, or that folder itself. It comes from {task.source}{index_source}."
    )


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
