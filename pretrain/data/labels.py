"""Columns of CSV files about clips, and their labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from sklearn.preprocessing import MultiLabelBinarizer

from m2d_bench.errors import DataError


def read_columns(path: Path, columns: list[str]) -> pd.DataFrame:
    """Reads columns of a CSV file as text.

    Raises:
        DataError: It is no CSV file in UTF-8, or lacks a column.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, usecols=columns)
    except (ValueError, OSError) as error:  # ragged, empty, not UTF-8, or without a column
        named = " and ".join(columns)
        raise DataError(f"{path}: not a CSV file with a column {named} ({error}).") from error


def read_labels(path: Path, clips: Iterable[str]) -> tuple[tuple[str, ...], csr_array]:
    """Reads the labels of clips.

    Args:
        path: CSV file with the columns file_name and label; several labels are separated by commas.
        clips: Paths of the clips as the file names them.

    Returns:
        Names of the classes, sorted, and multi-hot rows, [n_clips, n_classes] float32, sparse: dense ones of AudioSet
        would take 4 GB.

    Raises:
        DataError: It is no such file, or a clip is not in it.
    """
    table = read_columns(path, ["file_name", "label"])
    cells = dict(zip(table["file_name"], table["label"], strict=True))
    try:
        names = [[name.strip() for name in cells[clip].split(",") if name.strip()] for clip in clips]
    except KeyError as error:
        raise DataError(f"{path}: has no row for the clip {error}. Every clip takes one.") from None
    binarizer = MultiLabelBinarizer(sparse_output=True)
    labels = csr_array(binarizer.fit_transform(names), dtype=np.float32)
    return tuple(map(str, binarizer.classes_)), labels
