"""Run records in their folder: one JSON file per encoder, task, protocol and settings, holding raw scores only.

RUNS/DIGEST/TASK/PROTOCOL-key.json      the record
RUNS/DIGEST/TASK/PROTOCOL-key/*.npz     predictions, one file per seed and fold, where they were asked for

The path is the identity: a model that is known under several names has one record, which lists them. Up to schema 2 the
folder was NAME-digest; such records are read, and are merged into the new path when it is next written. No torch here.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from m2d_bench.errors import M2DBenchError, RunError, UsageError, describe
from m2d_bench.predictions import Predictions as Predictions
from m2d_bench.predictions import copy_predictions as copy_predictions
from m2d_bench.predictions import load_predictions as load_predictions
from m2d_bench.predictions import predictions_path
from m2d_bench.predictions import save_predictions as save_predictions
from m2d_bench.run_record import SYNTHETIC as SYNTHETIC
from m2d_bench.run_record import Run as Run
from m2d_bench.run_record import Score as Score
from m2d_bench.run_record import parse
from m2d_bench.run_record import paths as paths
from m2d_bench.settings import replacing

logger = logging.getLogger(__name__)

_PACKAGES = (
    *("m2d-bench", "torch", "numpy", "scipy", "scikit-learn", "soundfile", "soxr", "nnAudio"),
    *("espeakng-loader", "pretty_midi", "lightning-fabric", "pytorch-optimizer"),
)


class TasksFailed(M2DBenchError):
    """Some tasks of an evaluation failed; the others were done. Those that failed alike share a message.

    Args:
        failures: Error of each failed task.
        runs: Records of the tasks that were done.
    """

    def __init__(self, failures: Mapping[str, Exception], runs: Sequence[Run]) -> None:
        alike: dict[str, list[str]] = {}
        for task, error in failures.items():
            alike.setdefault(describe(error), []).append(task)
        self.messages = tuple(f"{', '.join(tasks)} failed: {reason}" for reason, tasks in alike.items())
        super().__init__("\n".join(self.messages))
        for task, error in failures.items():
            logger.debug("%s failed", task, exc_info=error)
        self.failures = failures
        self.runs = runs


def environment(device: str) -> dict[str, Any]:
    """Versions and machine to store with a run."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cores": os.cpu_count(),
    }


def load(path: Path) -> Run:
    """Reads a record; one of an older schema is upgraded.

    Raises:
        RunError: Not a run record, or one of a newer schema.
    """
    try:
        if not path.is_file():  # reading a pipe would wait
            raise OSError("no file")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a run record ({error}). Move it away to go on.") from error


def find(run: Run, folder: Path) -> Run | None:
    """The stored record of a run's identity, or None.

    Args:
        run: A run, whose scores do not matter.
        folder: Root of the records.

    Raises:
        RunError: A file in the record's path is none.
    """
    stored = _stored(run.path(folder))
    return _union(list(stored.values())) if stored else None


def _stored(path: Path) -> dict[Path, Run]:
    """The records of an identity, wherever they lie."""
    return {path: load(path) for path in paths(path) if path.exists()}


def load_as(run: Run, folder: Path) -> Run:
    """The stored record of a run's identity, under the run's name; a new name is added to the record."""
    stored, name = find(run, folder), run.encoder["name"]
    assert stored is not None
    if name not in stored.names:
        add(replace(stored, encoder=run.encoder, scores=()), folder)
    return stored.named(name)


def read(folder: Path) -> tuple[dict[Path, Run], list[str]]:
    """Every record under a folder, or the one of a file; those of one identity as one.

    Returns:
        The records by path, and a message for each file that is none; it is left alone.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.exists():
        raise UsageError(
            f"{folder}: no such folder of run records. m2d-bench linear writes runs/; name it with --runs."
        )
    copies: dict[str, dict[Path, Run]] = {}
    failures = []
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*.json")):
        try:
            run = load(path)
        except RunError as error:
            failures.append(str(error))
            continue
        same = copies.setdefault(run.key, {})
        if same:
            logger.warning("%s: the same record as %s; their scores are merged.", path, next(iter(same)))
        same[path] = run
    records = {}
    for same in copies.values():
        order = sorted(same, key=lambda path: path != same[path].path(path.parent.parent.parent))  # its own path first
        records[order[0]] = _union([same[path] for path in order])
    return records, failures


def add(run: Run, folder: Path, *, replacing_scores: bool = True) -> Run:
    """Adds a run's scores to its record and returns the record as it now stands.

    Scores that another process wrote meanwhile are kept. The file is written beside, flushed and renamed, so that it is
    whole at any moment; what older schemas' folders hold of this identity is removed only then. Other environments than
    the first's are kept beside it, under `also`.

    Args:
        run: The run with the new scores.
        folder: Root of the records.
        replacing_scores: Whether scores of the same seed and fold are replaced, with their predictions; else they stay.

    Raises:
        RunError: A file in the record's path is none, or the new record would be none; then nothing is written.
    """
    path = run.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        stored = _stored(path)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        earlier = _union(list(stored.values())) if stored else replace(run, scores=(), created=run.created or now)
        record = _merged(run, earlier, replacing_scores)
        text = json.dumps(asdict(record), indent=1)
        try:
            parse(text)
        except ValueError as error:
            raise RunError(f"{path}: not written, for it would be no run record ({error}).") from error
        for old_path, old in stored.items():
            copy_predictions(old_path, path, [score for score in old.scores if score in earlier.scores])
        with replacing(path) as file:
            file.write(text.encode())
        for seed, fold in earlier.by_fold.keys() & run.by_fold.keys() if replacing_scores else ():
            predictions_path(path, seed, fold).unlink(missing_ok=True)
        for old_path in stored.keys() - {path}:
            _remove(old_path)
    return record


def _union(records: Sequence[Run]) -> Run:
    """Records of one identity as one; of scores of the same seed and fold the first record's stay."""
    union = reduce(lambda earlier, later: _merged(later, earlier, replacing_scores=False), records)
    return replace(union, task=records[0].task, command=records[0].command)


def _merged(run: Run, earlier: Run, replacing_scores: bool) -> Run:
    """A record with what a run adds: the latest command, the earliest name and environment."""
    before, new = earlier.by_fold, run.by_fold
    scores = before | new if replacing_scores else new | before
    return replace(
        run,
        scores=tuple(scores[key] for key in sorted(scores)),
        created=earlier.created,
        seconds={**run.seconds, **earlier.seconds},
        environment=_environments(earlier.environment, run.environment),
    ).named(*earlier.names)


def _remove(path: Path) -> None:
    """Removes a record with its predictions and lock, and the folders that are empty then."""
    folder = path.with_suffix("")
    for file in (path, path.with_suffix(".lock"), *folder.glob("*.npz")):
        file.unlink(missing_ok=True)
    for empty in (folder, path.parent, path.parent.parent):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def _environments(first: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first one, and under `also` every other there was."""
    every = (first, *first.get("also", ()), other, *other.get("also", ()))
    own, *others = ({key: value for key, value in environment.items() if key != "also"} for environment in every)
    also = [other for index, other in enumerate(others) if other not in ({}, own, *others[:index])]
    return {**own, "also": also} if also else own
