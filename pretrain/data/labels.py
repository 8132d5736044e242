"""Labels of the clips of a source."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from sklearn.preprocessing import MultiLabelBinarizer

from m2d_bench.errors import DataError
from m2d_bench.pretrain.data.source import Source
from m2d_bench.tasks import index

logger = logging.getLogger(__name__)


def add_labels(source: Source, path: Path) -> None:
    """Gives the clips of a source their labels, from then on part of its fingerprint.

    Args:
        source: The clips.
        path: As for `read_labels`.

    Raises:
        DataError: As `read_labels`.
    """
    source.classes, labels = read_labels(path, map(source.path, range(source.n_clips)))
    content = repr((source.fingerprint, source.classes)).encode() + labels.indptr.tobytes() + labels.indices.tobytes()
    source.labels, source.fingerprint = labels, hashlib.sha256(content).hexdigest()[:16]


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
    table = index.read_columns(path, ["file_name", "label"])[["file_name", "label"]].drop_duplicates()
    if twice := table["file_name"][table["file_name"].duplicated()].tolist():
        raise DataError(
            f"{path}: {len(twice)} clips have two lines of different labels: {', '.join(twice[:5])}. "
            "Give each one line, its labels separated by commas."
        )
    cells = dict(zip(table["file_name"], table["label"], strict=True))
    names, missing = [], []
    for clip in clips:
        if clip in cells:
            names.append(index.labels(cells[clip].split(",")))
        else:
            missing.append(clip)
    if missing:
        raise DataError(
            f"{path}: has no row for {len(missing)} of {len(names) + len(missing)} clips: {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}. Every clip takes one, named by its path in the data's folder."
        )
    if unlabelled := names.count(()):
        logger.warning("%s: %s of %s clips have no label.", path, unlabelled, len(names))
    if not any(names):
        raise DataError(f"{path}: none of the clips has a label.")
    binarizer = MultiLabelBinarizer(sparse_output=True)
    labels = csr_array(binarizer.fit_transform(names), dtype=np.float32)
    return tuple(map(str, binarizer.classes_)), labels
