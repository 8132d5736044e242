"""A metadata file of EVAR, with the sound files of its clone, as a task.

    CLONE/evar/metadata/TASK.csv     columns file_name, label, and split (train, valid, test) or fold
    CLONE/work/{16k,32k,…}/TASK/     the sound files

Several labels in one cell, separated by commas, make a task multi-label.

Source: https://github.com/nttcslab/eval-audio-repr
"""

from __future__ import annotations

import logging
from pathlib import Path

from m2d_bench.errors import DataError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import index
from m2d_bench.tasks.contents import durations
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


def read(path: str, storage: Storage) -> Task:
    """The task of a metadata file.

    Args:
        path: The CSV file.
        storage: Its cache remembers the clips' durations, where the unit duration is their mean.

    Raises:
        UsageError: No such file.
        DataError: Not a metadata file, or its sound files are missing.
    """
    file = Path(path).expanduser().resolve()
    column, clips = _clips(file)
    multilabel = any(len(clip.labels) > 1 for clip in clips)
    return Task(
        name=f"evar:{file.stem}",
        domain="other",
        metric="mAP" if multilabel else "accuracy",
        multilabel=multilabel,
        clip_seconds=UNIT_SECONDS.get(file.stem) or _mean_seconds(file, storage.cache_root),
        n_classes=len({label for clip in clips for label in clip.labels}),
        n_clips=len(clips),
        folds=None if column == "split" else Folds(column=column, count=len({clip.split for clip in clips})),
        lister=entries,
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
    work = file.parent.parent.parent / "work"
    copies = {rate: work / name / file.stem for rate, name in _FOLDERS.items() if (work / name / file.stem).is_dir()}
    if not copies:
        raise DataError(
            f"{file}: no sound files. EVAR keeps them in {work / _FOLDERS[16000] / file.stem}, at 16 kHz; its "
            "Preparing-datasets.md says how to make them."
        )
    rate = next((rate for rate in copies if rate >= sample_rate), max(copies))
    if rate != sample_rate:
        logger.warning("%s: no copy at %s Hz; the one at %s Hz is resampled.", file.stem, sample_rate, rate)
    return copies[rate], _clips(file)[1]


def _clips(file: Path) -> tuple[str, list[Entry]]:
    """The column that says fold or split, and the clips."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file; name a metadata file of EVAR, such as CLONE/evar/metadata/esc50.csv.")
    columns, clips = index.read_clips(file)
    column = next((name for name in ("split", "fold") if name in columns), None)
    if column is None:
        raise DataError(f"{file}: neither a column split nor a column fold beside {', '.join(columns.values())}.")
    return column, clips


def _mean_seconds(file: Path, cache: Path) -> float:
    """Mean duration in seconds of the clips that can be read."""
    seconds = durations(*entries(file, 16000), cache)
    return sum(seconds) / len(seconds)
