"""A HEAR 2021 task folder, in the preprocessed format of hear-preprocess, as a task.

    FOLDER/task_metadata.json     name, prediction type, splits, metrics
    FOLDER/labelvocabulary.csv    columns idx and label: the classes in order
    FOLDER/{split}.json           file name → list of labels; splits are train, valid, test, or fold00, fold01, …
    FOLDER/{sample rate}/{split}/ the sound files

Source: HEAR 2021 (arXiv 2203.03022); https://hearbenchmark.com
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from m2d_bench.errors import DataError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import index
from m2d_bench.tasks.contents import durations
from m2d_bench.tasks.task import Entry, Folds, Metric, Task

logger = logging.getLogger(__name__)

METRICS: dict[str, Metric] = {
    "top1_acc": "accuracy",
    "pitch_acc": "accuracy",
    "chroma_acc": "chroma_accuracy",
    "mAP": "mAP",
    "d_prime": "d_prime",
    "aucroc": "aucroc",
}
"""HEAR's names of metrics → ours."""

_OFFICIAL = ("train", "valid", "test")


def read(path: str, storage: Storage) -> Task:
    """The task of a folder; its first metric chooses the epoch, the others are scored beside it.

    Args:
        path: The folder.
        storage: Its cache remembers the clips' durations, where the unit duration is the longest.

    Raises:
        UsageError: No such folder.
        DataError: An event task, or files that are not of this format.
    """
    folder = Path(path).expanduser().resolve()
    metadata = _metadata(folder)
    choices = {"embedding_type": ("scene",), "prediction_type": ("multiclass", "multilabel")}
    for key, allowed in choices.items():
        if metadata[key] not in allowed:
            raise DataError(
                f"{folder}: {key} is {metadata[key]!r}; the harness evaluates {' and '.join(allowed)} tasks. "
                f"Use heareval with m2d_bench.hear_api for others."
            )
    splits = _splits(folder, metadata)
    unknown = [metric for metric in metadata["evaluation"] if metric not in METRICS]
    if unknown or not metadata["evaluation"]:
        raise DataError(f"{folder}: unknown metrics {unknown}; known are {', '.join(METRICS)}.")
    metrics: tuple[Metric, ...] = tuple(dict.fromkeys(METRICS[metric] for metric in metadata["evaluation"]))
    classes = _classes(folder)
    declared = metadata.get("sample_duration")
    name = "-".join(str(metadata[key]) for key in ("task_name", "version", "mode") if metadata.get(key))
    return Task(
        name=f"hear:{name}",
        domain="other",
        metric=metrics[0],
        other_metrics=metrics[1:],
        multilabel=metadata["prediction_type"] == "multilabel",
        clip_seconds=float(declared or _longest(folder, splits, storage.cache_root)),
        clip_seconds_source="task_metadata.json" if declared else "longest clip",
        n_classes=len(classes),
        n_clips=sum(len(_labels(folder, split)) for split in splits),
        classes=classes,
        folds=None if splits == _OFFICIAL else Folds(column="", count=len(splits), valid="next"),
        lister=entries,
        folder=str(folder),
        source=str(folder),
    )


def _longest(folder: Path, splits: tuple[str, ...], cache: Path) -> float:
    """Seconds of the longest clip, for tasks such as FSD50K whose clips were left as long as they are."""
    return max(durations(folder, _entries(folder, splits, _rates(folder)[0]), cache))


def entries(folder: Path, sample_rate: int) -> tuple[Path, list[Entry]]:
    """A task folder, and every clip of it, its splits in order.

    Args:
        folder: The folder.
        sample_rate: Hz wanted: the copy at this rate is taken, else the next higher, else the highest.

    Raises:
        DataError: No sound files.
    """
    rates = _rates(folder)
    rate = next((each for each in rates if each >= sample_rate), rates[-1])
    if rate != sample_rate:
        logger.warning("%s: no copy at %s Hz; the one at %s Hz is resampled.", folder.name, sample_rate, rate)
    return folder, _entries(folder, _splits(folder, _metadata(folder)), rate)


def _rates(folder: Path) -> list[int]:
    """Sample rates in Hz of the copies of the clips, in order."""
    rates = sorted(int(each.name) for each in folder.iterdir() if each.is_dir() and each.name.isdigit())
    if not rates:
        raise DataError(f"{folder}: no folder of sound files named by its sample rate, such as 16000.")
    return rates


def _entries(folder: Path, splits: tuple[str, ...], rate: int) -> list[Entry]:
    return [
        index.entry(f"{rate}/{split}/{file}", labels, split)
        for split in splits
        for file, labels in _labels(folder, split).items()
    ]


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / "task_metadata.json"
    if not path.is_file():
        inside = sorted(each.parent.name for each in folder.glob("*/task_metadata.json"))
        hint = f"It holds the tasks {', '.join(inside)}: name one of those." if inside else "See docs/hear.md."
        raise UsageError(f"{folder}: no HEAR task folder, it has no {path.name}. {hint}")
    metadata = index.read_json(path)
    wanted = ("task_name", "embedding_type", "prediction_type", "split_mode", "splits", "evaluation")
    if missing := [key for key in wanted if metadata.get(key) is None]:
        raise DataError(f"{path}: lacks {', '.join(missing)}.")
    seconds = metadata.get("sample_duration")
    if seconds is not None and (not isinstance(seconds, int | float) or seconds <= 0):
        raise DataError(f"{path}: sample_duration is {seconds!r}; expected seconds above 0, the length of the clips.")
    return metadata


def _splits(folder: Path, metadata: dict[str, Any]) -> tuple[str, ...]:
    """Names of the official splits, or of the folds in order."""
    mode = metadata["split_mode"]
    if mode == "trainvaltest":
        return _OFFICIAL
    if mode not in ("presplit_kfold", "new_split_kfold"):
        raise DataError(
            f"{folder}: split_mode is {mode!r}; known are trainvaltest, presplit_kfold and new_split_kfold."
        )
    folds = metadata["splits"]
    if not isinstance(folds, list) or not all(isinstance(fold, str) for fold in folds):
        raise DataError(f"{folder}: splits is {folds!r}; expected a list of names.")
    if len(set(folds)) < 3:
        raise DataError(f"{folder}: {len(set(folds))} folds; it takes three to train, choose and test.")
    return tuple(sorted(set(folds)))


def _classes(folder: Path) -> tuple[str, ...]:
    path = folder / "labelvocabulary.csv"
    table = index.read_columns(path, ["idx", "label"])
    numbers = pd.to_numeric(table["idx"], errors="coerce").sort_values()
    if numbers.tolist() != list(range(len(table))):
        raise DataError(f"{path}: idx must be 0, 1, 2, …, each once; got {', '.join(table['idx'][:10])}.")
    classes = index.labels(table["label"][numbers.index])
    if len(classes) != len(table):
        raise DataError(f"{path}: {len(table)} lines, {len(classes)} different labels; each takes a name of its own.")
    return classes


def _labels(folder: Path, split: str) -> dict[str, tuple[str, ...]]:
    """Labels of each file of a split."""
    found = index.read_json(folder / f"{split}.json")
    if not found:
        raise DataError(f"{folder / split}.json: names no clip.")
    if not all(isinstance(labels, list) for labels in found.values()):
        raise DataError(f"{folder / split}.json: maps file names to lists of labels; got another kind of value.")
    return {file: tuple(map(str, labels)) for file, labels in found.items()}
