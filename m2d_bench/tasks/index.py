"""Indexes of clips: CSV and JSON files and lists, and the labels and folds in them. The only file that reads them."""

from __future__ import annotations

import csv
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from m2d_bench.errors import DataError
from m2d_bench.tasks.task import Entry

COLUMNS = {
    "file_name": ("file_name", "filename", "file", "path", "audio"),
    "label": ("label", "labels", "class", "category", "target"),
    "split": ("split", "subset"),
    "fold": ("fold",),
    "group": ("group",),
    "start_s": ("start_s",),
    "end_s": ("end_s",),
}
"""What a table tells of clips → names that its column may have, in any capitals; the first that is there is read."""

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def read_clips(path: Path) -> tuple[dict[str, str], list[Entry]]:
    """Reads a table of clips.

    Args:
        path: A file as of `read_columns`; several labels in one cell are separated by commas.

    Returns:
        The names of the columns it was read from, by those of COLUMNS; and the clips in its order, their splits named
        train, valid and test where they have a usual name.

    Raises:
        DataError: As of `read_columns`; or it names no file or label, or no stretch of a file where it should.
    """
    table = read_columns(path, [])
    there = {column.casefold(): column for column in reversed(table.columns)}
    columns = {
        what: there[names[0]]
        for what, allowed in COLUMNS.items()
        if (names := [name for name in allowed if name in there])
    }
    for what in ("file_name", "label"):
        if what not in columns:
            others = ", ".join(COLUMNS[what][1:])
            raise DataError(f"{path}: no column {what} (or {others}); it has {', '.join(table.columns)}.")
    if blank := int((table[columns["file_name"]] == "").sum()):
        raise DataError(f"{path}: {blank} lines name no file. Name one in each, or leave them out.")
    return columns, [
        _clip(path, {what: row[column] for what, column in columns.items()}) for row in table.to_dict("records")
    ]


def _clip(path: Path, cells: Mapping[str, str]) -> Entry:
    """A clip by the cells of its line."""
    split = split_name(cells["split"]) if "split" in cells else cells.get("fold", "")
    clip = entry(cells["file_name"], cells["label"].split(","), split)
    start, end = span(path, clip.file, (cells.get("start_s", ""), cells.get("end_s", "")))
    return clip._replace(start=start, end=end, group=cells.get("group", ""))


def span(path: Path, file: str, texts: tuple[str, str]) -> tuple[float, float]:
    """Where a clip starts and ends in its file, in seconds; where nothing is told, at the file's start and end.

    Args:
        path: What tells it.
        file: The clip's file.
        texts: Start and end as they are told.

    Raises:
        DataError: They are no stretch of a file.
    """
    try:
        start, end = (float(text.replace(",", ".") or whole) for text, whole in zip(texts, (0, math.inf), strict=True))
        if not 0 <= start < end:
            raise ValueError
    except ValueError:
        raise DataError(
            f"{path}: start_s and end_s of {file} are {texts[0]!r} and {texts[1]!r}; allowed are seconds from 0 "
            "on, the end after the start, or nothing for the file's own start and end."
        ) from None
    return start, end


def split_name(name: str) -> str:
    """train, valid or test by a usual name of it; another name as it is."""
    return _SPLITS.get(name.casefold(), name)


def read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads a CSV file as text without blanks around it; empty lines are left out.

    Args:
        path: The file, in UTF-8, one line a clip (or class) below a header; cells are separated by what separates the
            names of its columns: commas, semicolons or tabs.
        columns: Columns it must have; others are returned too.

    Raises:
        DataError: It is no such file, lacks one of the columns, or has no line below its header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            lines_of_cells = csv.reader(file, delimiter=separator, skipinitialspace=True)
            rows = [[cell.strip() for cell in row] for row in lines_of_cells]
            if not (rows := [row for row in rows if any(row)]):
                raise ValueError("it is empty")
            header, *lines = rows
            while not header[-1]:
                header.pop()
            if len({*header}) < len(header):
                raise ValueError("a column stands twice in its header")
            for row in lines:
                if len(row) < len(header) or any(row[len(header) :]):
                    raise ValueError(
                        f"{len(row)} cells in the line {', '.join(row[:5])!r}, {len(header)} in the header"
                    )
    except (ValueError, csv.Error, OSError) as error:  # ragged, not UTF-8, or no file
        raise DataError(f"{path}: not a CSV file in UTF-8 with one line a clip: {error}.") from error
    if missing := [column for column in columns if column not in header]:
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}.")
    if not lines:
        raise DataError(f"{path}: has a header and nothing below it. Add one line a clip.")
    table: pd.DataFrame = pd.DataFrame([row[: len(header)] for row in lines], columns=header, dtype=str)
    return table


def read_words(path: Path, count: int) -> list[list[str]]:
    """Reads a list: a text file of so many words a line, empty lines left out.

    Args:
        path: The file, in UTF-8.
        count: Words of each line.

    Raises:
        DataError: It is no such file.
    """
    try:
        lines = [words for line in path.read_text(encoding="utf-8-sig").splitlines() if (words := line.split())]
        if wrong := [words for words in lines if len(words) != count]:
            raise ValueError(f"{' '.join(wrong[0])!r}")
    except (ValueError, OSError) as error:  # another format, not UTF-8, or no file
        raise DataError(f"{path}: not a list in UTF-8 with {count} words a line: {error}.") from error
    return lines


def read_rows(path: Path, count: int) -> Iterator[list[str]]:
    """Reads a CSV file without a header, one line at a time; lines that begin with # are left out.

    Args:
        path: The file, in UTF-8, cells separated by commas.
        count: Cells of each line.

    Raises:
        DataError: It is no such file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for cells in csv.reader((line for line in file if not line.startswith("#")), skipinitialspace=True):
                if len(cells) != count:
                    raise ValueError(f"{', '.join(cells)!r}")
                yield cells
    except (ValueError, csv.Error, OSError) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 with {count} cells a line: {error}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        DataError: It is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds a {type(found).__name__}, expected an object.")
    return found


def labels(names: Iterable[str]) -> tuple[str, ...]:
    """Labels as they are compared: composed Unicode (NFC) without blanks around it, each once, empty ones left out."""
    return tuple(dict.fromkeys(label for label in map(_label, names) if label))


@lru_cache(2**16)  # one string for all clips that bear it
def _label(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def entry(file: str, names: Iterable[str], split: str) -> Entry:
    """A clip with its labels, and its fold or split, where the 1.0 of a spreadsheet means 1."""
    return Entry(file, labels(names), re.sub(r"^(\d+)\.0+$", r"\1", split.strip()))
