"""Labels of clips, read from a CSV file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from sklearn.preprocessing import MultiLabelBinarizer
from torch import Tensor

from m2d_bench.errors import DataError


def read_columns(path: Path, columns: list[str]) -> pd.DataFrame:
    """Columns of a CSV file as text.

    Raises:
        DataError: It is no CSV file in UTF-8, or lacks a column.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, usecols=columns)
    except (ValueError, OSError) as error:  # ragged, empty, not UTF-8, or without a column
        named = " and ".join(columns)
        raise DataError(f"{path}: not a CSV file with a column {named} ({error}).") from error


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of the clips of a source, sparse: a dense matrix of AudioSet's would take 4 GB.

    Args:
        classes: Names of the classes, sorted.
        matrix: Multi-hot rows, [n_clips, n_classes].
    """

    classes: tuple[str, ...]
    matrix: csr_array

    @classmethod
    def read(cls, path: Path, clips: Iterable[str]) -> Labels:
        """Reads the labels of clips.

        Args:
            path: CSV file with the columns file_name and label; several labels are separated by commas.
            clips: The clips' paths as the file names them, in the order of the source.

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
        matrix = csr_array(binarizer.fit_transform(names), dtype=np.float32)
        return cls(classes=tuple(map(str, binarizer.classes_)), matrix=matrix)

    def take(self, clips: np.ndarray) -> Labels:
        """The labels of some clips, [n] int64, in their order."""
        return Labels(classes=self.classes, matrix=self.matrix[clips])

    def multi_hot(self, clips: np.ndarray) -> Tensor:
        """Labels of some clips, [n] int64 → [n, n_classes] float32."""
        return torch.from_numpy(self.matrix[clips].toarray())

    def fingerprint(self) -> str:
        """Identity of the labels: 16 hexadecimal digits."""
        sha = hashlib.sha256(repr(self.classes).encode())
        sha.update(self.matrix.indptr.astype(np.int64).tobytes())
        sha.update(self.matrix.indices.astype(np.int64).tobytes())
        return sha.hexdigest()[:16]
