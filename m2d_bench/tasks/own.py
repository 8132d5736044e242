"""One's own data as a task: a folder of class folders, or a table of clips, lying anywhere.

    FOLDER        see `tasks.folders`
    FILE.csv      columns file_name and label; split or fold, group, start_s and end_s where wanted, see `tasks.index`

Without split or fold, folds are drawn, see `tasks.folds`. A clip of several labels makes the task multi-label.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from m2d_bench.errors import DataError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import folders, folds, index
from m2d_bench.tasks.contents import durations
from m2d_bench.tasks.task import Entry, Task


def read(path: str, storage: Storage) -> Task:
    """The task of a folder or a table; its unit duration is the mean of its clips, in whole milliseconds.

    Args:
        path: The folder or file.
        storage: Its data folder is where a table's files may lie; its cache remembers the clips' durations.

    Raises:
        UsageError: No such folder or file.
        DataError: It cannot be read as one, none of its files is there, or folds cannot be drawn.
    """
    place = Path(path).expanduser().resolve()
    if place.is_dir():
        root, source = place, str(place)
        kind, entries = folders.read_clips(place)
        names = [entry.file.split("/", 1)[1] for entry in entries]
    elif place.is_file():
        columns, entries = index.read_clips(place)
        kind = next((column for column in ("split", "fold") if column in columns), "")
        source = f"{place} (columns {', '.join(columns.values())})"
        root, entries = _located(place, entries, storage.data_root)
        names = [entry.file for entry in entries]
    else:
        raise UsageError(f"{place}: no such folder or file. Name a folder of class folders, or a CSV file of clips.")
    drawn = None
    if not kind:
        drawn, entries = folds.draw(place, entries, names)
    return Task.listed(
        entries,
        kind,
        folds=drawn,
        name=f"own:{place.name if place.is_dir() else place.stem}",
        clip_seconds=max(0.001, round(fmean(durations(root, entries, storage.cache_root)), 3)),
        clip_seconds_source="mean of the clips",
        lister=partial(_list, entries),
        folder=str(root),
        source=source,
        own=True,
    )


def _list(entries: Sequence[Entry], root: Path, _: int) -> tuple[Path, Sequence[Entry]]:
    """The clips that were read before."""
    return root, entries


def _located(table: Path, entries: Sequence[Entry], data: Path | None) -> tuple[Path, list[Entry]]:
    """A folder that holds a table's files, and its clips with their files' paths below it.

    Raises:
        DataError: None of them is there.
    """
    files = dict.fromkeys(entry.file for entry in entries)
    roots = [table.parent, *([data.resolve()] if data else [])]
    found = {root: {file: path for file in files if (path := _path(root, file))} for root in roots}
    root = max(roots, key=lambda root: len(found[root]))
    paths = found[root]
    if not paths:
        raise DataError(
            f"{table}: none of its {len(files)} files is there, such as {entries[0].file}. Looked in "
            f"{' and '.join(map(str, roots))}; name the folder they lie in with --data."
        )
    if not all(path.is_relative_to(root) for path in paths.values()):
        root = Path(os.path.commonpath([path.parent for path in paths.values()]))
    names = {file: path.relative_to(root).as_posix() for file, path in paths.items()}
    return root, [entry._replace(file=names.get(entry.file, entry.file)) for entry in entries]


def _path(folder: Path, file: str) -> Path | None:
    """Where a file lies, whatever form of Unicode and which separators its name has there."""
    forms = (unicodedata.normalize(form, file.replace("\\", "/")) for form in ("NFC", "NFD"))
    return next((Path(os.path.abspath(folder / name)) for name in (file, *forms) if (folder / name).is_file()), None)
