"""Indexes of clips: CSV files as text, and the labels and folds in their cells. The only file that reads them."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from m2d_bench.errors import DataError
from m2d_bench.tasks.task import Entry


def read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads a CSV file as text without blanks around it; empty lines are left out.

    Args:
        path: The file, in UTF-8, one line a clip (or class) below a header.
        columns: Columns it must have; others are returned too.

    Raises:
        DataError: It is no such file, lacks one of the columns, or has no line below its header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file, skipinitialspace=True)]
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


def labels(names: Iterable[str]) -> tuple[str, ...]:
    """Labels as they are compared: composed Unicode (NFC) without blanks around it, each once, empty ones left out."""
    return tuple(dict.fromkeys(label for name in names if (label := unicodedata.normalize("NFC", name).strip())))


def entry(file: str, names: Iterable[str], split: str) -> Entry:
    """A clip with its labels, and its fold or split, where the 1.0 of a spreadsheet means 1."""
    return Entry(file, labels(names), re.sub(r"^(\d+)\.0+$", r"\1", split.strip()))
