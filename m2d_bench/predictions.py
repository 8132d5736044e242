"""Predictions beside a run's record, RUNS/DIGEST/TASK/PROTOCOL-key/SEED-FOLD.npz: a file a seed and fold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2d_bench.errors import RunError
from m2d_bench.run_record import Run, Score, paths
from m2d_bench.settings import file_name, replacing


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What one seed on one fold said of each test clip.

    Args:
        seed: Seed of the run.
        fold: Fold that was tested, or "test".
        clips: Place of each test clip in the task's index, [N].
        labels: Class numbers [N], or multi-hot [N, C].
        scores: Larger with the belief in a class, [N, C] float32.
        valid_scores: Validation score of each epoch, or candidate.
        classes: Names of the classes, [C].
    """

    seed: int
    fold: str
    clips: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    valid_scores: np.ndarray
    classes: np.ndarray


def predictions_path(record: Path, seed: int, fold: str) -> Path:
    """The file of a seed's and fold's predictions; folds whose names a file cannot bear are told apart."""
    name = file_name(fold)
    mark = "" if name == fold else "-" + hashlib.sha256(os.fsencode(fold)).hexdigest()[:8]
    return record.with_suffix("") / f"{seed}-{name}{mark}.npz"


def save_predictions(run: Run, folder: Path, predictions: Predictions) -> None:
    """Writes predictions beside the record of a run; those of the same seed and fold are replaced."""
    with replacing(predictions_path(run.path(folder), predictions.seed, predictions.fold)) as file:
        np.savez_compressed(file, **vars(predictions))


def load_predictions(path: Path) -> list[Predictions]:
    """The predictions beside a record, by seed and fold; also those in older schemas' folders of the same identity.

    Args:
        path: The record.

    Raises:
        RunError: One of the files cannot be read.
    """
    files: dict[str, Path] = {}
    for record in paths(path):
        files = {file.name: file for file in record.with_suffix("").glob("*.npz")} | files
    return sorted(map(_read, files.values()), key=lambda predictions: (predictions.seed, predictions.fold))


def copy_predictions(source: Path, target: Path, scores: Iterable[Score]) -> None:
    """Copies the predictions behind scores from beside one record to beside another, where they are missing."""
    for score in scores:
        file, copy = (predictions_path(record, score.seed, score.fold) for record in (source, target))
        if file.exists() and not copy.exists():
            with replacing(copy) as opened:
                opened.write(file.read_bytes())


def _read(file: Path) -> Predictions:
    try:
        with np.load(file) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        predictions = Predictions(**{**values, "seed": int(values["seed"]), "fold": str(values["fold"])})
        _check(predictions)
    except Exception as error:  # whatever a broken zip raises
        raise RunError(f"{file}: no predictions ({error}). Remove it, and run again with --force.") from error
    return predictions


def _check(predictions: Predictions) -> None:
    """Raises a ValueError where shapes, types or values are not those of predictions."""
    n_clips, n_classes = predictions.scores.shape
    labels = predictions.labels
    shapes = {"clips": (n_clips,), "classes": (n_classes,), "valid_scores": predictions.valid_scores.shape[:1]}
    shapes["labels"] = (n_clips,) if labels.ndim == 1 else (n_clips, n_classes)
    for name, shape in shapes.items():
        if (received := getattr(predictions, name).shape) != shape:
            raise ValueError(f"{name} {list(received)}, scores [{n_clips}, {n_classes}]")
    for name in ("clips", "labels", "scores", "valid_scores"):
        if not np.isfinite(getattr(predictions, name)).all():
            raise ValueError(f"{name} are not finite")
    if labels.ndim == 1 and not np.isin(labels, np.arange(n_classes)).all():
        raise ValueError(f"labels beyond {n_classes} classes")
