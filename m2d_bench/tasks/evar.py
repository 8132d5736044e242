"""A metadata file of EVAR, with the sound files of its clone, as a task.

    CLONE/evar/metadata/TASK.csv     columns file_name, label, and split (train, valid, test) or fold
    CLONE/work/{16k,32k,…}/TASK/     the sound files

Several labels in one cell, separated by commas, make a task multi-label.

Source: https://github.com/nttcslab/eval-audio-repr
"""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from m2d_bench import audio
from m2d_bench.errors import DataError, UsageError
from m2d_bench.tasks.task import Entry, Folds, Task

logger = logging.getLogger(__name__)

UNIT_SECONDS = {
    "as20k": 10.0,
    "as2m": 10.0,
    "as": 10.0,
    "us8k": 4.0,
    "esc50": 5.0,
    "fsd50k": 7.6358,
    "gtzan": 30.0,
    "nsynth": 4.0,
    "cremad": 2.5,
    "spcv2": 1.0,
    "surge": 4.0,
    "vc1": 8.2,
    "voxforge": 5.8,
}
"""Unit durations of the papers; of other tasks it is the mean of the clips. Source: M2D-X (2024), Table I."""

_FOLDERS = {16000: "16k", 22000: "22k", 32000: "32k", 44100: "44k", 48000: "48k"}
_SPLITS = {"train", "valid", "test"}


def read(path: str) -> Task:
    """The task of a metadata file.

    Args:
        path: The CSV file.

    Raises:
        UsageError: No such file.
        DataError: Not a metadata file, or its sound files are missing.
    """
    file = Path(path).expanduser().resolve()
    index = _index(file)
    labels = index["label"]
    multilabel = bool(labels.str.contains(",").any())
    classes = {label for cell in labels for label in (cell.split(",") if multilabel else [cell])}
    return Task(
        name=f"evar:{file.stem}",
        domain="other",
        metric="mAP" if multilabel else "accuracy",
        multilabel=multilabel,
        clip_seconds=UNIT_SECONDS.get(file.stem) or _mean_seconds(file),
        n_classes=len(classes),
        n_clips=len(index),
        folds=None if "split" in index else Folds(column="fold", count=index["fold"].nunique()),
        lister=f"{__name__}:entries",
        folder=str(file),
        source=str(file),
    )


def entries(file: Path, sample_rate: int) -> tuple[Path, list[Entry]]:
    """Folder and clips of a metadata file.

    Args:
        file: The CSV file.
        sample_rate: Hz wanted: the copy at this rate is taken, else the next higher, else the highest.

    Raises:
        DataError: No sound files.
    """
    index, work = _index(file), file.parent.parent.parent / "work"
    copies = {rate: work / name / file.stem for rate, name in _FOLDERS.items() if (work / name / file.stem).is_dir()}
    if not copies:
        raise DataError(
            f"{file}: no sound files. EVAR keeps them in {work / _FOLDERS[16000] / file.stem}, at 16 kHz; its "
            "Preparing-datasets.md says how to make them."
        )
    rate = next((rate for rate in copies if rate >= sample_rate), max(copies))
    if rate != sample_rate:
        logger.warning("%s: no copy at %s Hz; the one at %s Hz is resampled.", file.stem, sample_rate, rate)
    multilabel = index["label"].str.contains(",").any()
    return copies[rate], [
        Entry(name, tuple(label.split(",")) if multilabel else (label,), split)
        for name, label, split in zip(
            index["file_name"], index["label"], index["split" if "split" in index else "fold"], strict=True
        )
    ]


def _index(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise UsageError(f"{file}: no such file; name a metadata file of EVAR, such as CLONE/evar/metadata/esc50.csv.")
    try:
        index = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise DataError(f"{file}: not a CSV file in UTF-8: {error}") from error
    if missing := [name for name in ("file_name", "label") if name not in index]:
        raise DataError(f"{file}: no column {', '.join(missing)}; it has {', '.join(index.columns)}.")
    if "split" not in index and "fold" not in index:
        raise DataError(f"{file}: neither a column split nor a column fold; it has {', '.join(index.columns)}.")
    if "split" in index and not {"train", "test"} <= set(index["split"]) <= _SPLITS:
        raise DataError(f"{file}: the column split holds {sorted(set(index['split']))}; allowed are {sorted(_SPLITS)}.")
    return index


def _mean_seconds(file: Path) -> float:
    """Mean duration of the clips in seconds."""
    root, found = entries(file, 16000)
    return sum(audio.duration(root / entry.file) for entry in found) / len(found)
