"""A run's record: one JSON file an (encoder, task, protocol, configuration), holding raw scores only. No torch here.

RUNS/ENCODER-digest/TASK/PROTOCOL-key.json      the record
RUNS/ENCODER-digest/TASK/PROTOCOL-key/*.npz     predictions, one file a seed and fold, where they were asked for
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

from m2d_bench.errors import M2DBenchError, RunError, UsageError
from m2d_bench.settings import file_name, replacing

logger = logging.getLogger(__name__)

SCHEMA = 2
SYNTHETIC = " (synthetic)"
"""Stands behind the name of a task whose clips are generated, wherever it is shown."""

_PACKAGES = (
    *("m2d-bench", "torch", "numpy", "scipy", "scikit-learn", "soundfile", "soxr", "nnAudio"),
    *("espeakng-loader", "pretty_midi", "lightning-fabric", "pytorch-optimizer"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One raw score: one seed on one fold.

    Args:
        seed: Seed of the run.
        fold: Fold that was tested, or "test" for an official split.
        score: In the task's metric.
        n_test: Clips tested.
        seconds: Time the probe or the training took.
        valid_score: Score on the validation split that chose the weights or settings.
        chosen: What validation chose, such as the epoch.
        others: Scores in the task's other metrics.
    """

    seed: int
    fold: str
    score: float
    n_test: int
    seconds: float = 0.0
    valid_score: float | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything needed to print, compare and repeat a result; means and intervals are computed on reading.

    Args:
        encoder: name, digest, and whatever else describes it.
        task: name, version, metric, other_metrics, domain, synthetic, n_classes, n_clips, n_folds, fingerprint of the
            clips.
        protocol: linear, knn, logreg, finetune, …
        settings: Configuration in full, every value that can change a score.
        repeated: What differs between seeds.
        environment: Package versions, device, processor.
        scores: Raw scores.
        seconds: Times of the steps shared by all seeds.
        command: How to repeat it, where that is known.
        created: ISO time of the first score.
        schema: Version of this layout.
    """

    encoder: Mapping[str, Any]
    task: Mapping[str, Any]
    protocol: str
    settings: Mapping[str, Any]
    repeated: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    created: str = ""
    schema: int = SCHEMA

    @property
    def task_title(self) -> str:
        """Name of the task as it is shown, with a word where its clips are generated."""
        return self.task["name"] + (SYNTHETIC if self.task["synthetic"] else "")

    @property
    def key(self) -> str:
        """Identity of the record: encoder, task, protocol and settings, 10 hexadecimal digits."""
        task = [self.task[name] for name in ("name", "version", "fingerprint", "metric")]
        task += self.task["other_metrics"]
        identity = [self.encoder["digest"], task, self.protocol, self.settings]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]

    def path(self, folder: Path) -> Path:
        """Place of the record: `folder/encoder/task/protocol-key.json`."""
        encoder = f"{file_name(self.encoder['name'])}-{self.encoder['digest'][:8]}"
        return folder / encoder / file_name(self.task["name"]) / f"{self.protocol}-{self.key}.json"

    def done(self, n_folds: int) -> set[int]:
        """Seeds of which every fold has a score."""
        folds: dict[int, set[str]] = {}
        for score in self.scores:
            folds.setdefault(score.seed, set()).add(score.fold)
        return {seed for seed, tested in folds.items() if len(tested) >= n_folds}

    def limited_to(self, seeds: Iterable[int]) -> Run:
        """The same record with the scores of these seeds alone."""
        wanted = set(seeds)
        return replace(self, scores=tuple(score for score in self.scores if score.seed in wanted))


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


class TasksFailed(M2DBenchError):
    """Some tasks of an evaluation failed; the others were done.

    Args:
        failures: Error of each failed task.
        runs: Records of the tasks that were done.
    """

    def __init__(self, failures: Mapping[str, Exception], runs: Sequence[Run]) -> None:
        self.messages = tuple(f"{task} failed: {error}" for task, error in failures.items())
        super().__init__("\n".join(self.messages))
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
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] > SCHEMA:
            raise RunError(f"{path}: schema {values['schema']}, this version reads up to {SCHEMA}. Update m2d-bench.")
        while values["schema"] < SCHEMA:
            values = _UPGRADES[values["schema"]](values)
        scores = tuple(Score(**score) for score in values.pop("scores"))
        run = Run(**{**values, "repeated": tuple(values["repeated"])}, scores=scores)
        _check(run)
        return run
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunError(f"{path}: not a run record ({type(error).__name__}: {error}). Move it away to go on.") from error


_NEEDED: dict[str, dict[str, type]] = {
    "encoder": {"name": str, "digest": str},
    "task": {"name": str, "version": int, "metric": str, "fingerprint": str, "synthetic": bool, "n_folds": int},
}


def _check(run: Run) -> None:
    """Raises a TypeError where something is missing that every reader relies on."""
    for part, kinds in _NEEDED.items():
        for name, kind in kinds.items():
            if not isinstance(getattr(run, part).get(name), kind):
                raise TypeError(f"{part}.{name} is {getattr(run, part).get(name)!r}")
    for score in run.scores:
        numbers = [score.score, *(score.others[name] for name in run.task["other_metrics"])]
        if not isinstance(score.seed, int) or not all(isinstance(number, int | float) for number in numbers):
            raise TypeError(f"the score of seed {score.seed!r}, fold {score.fold!r} is {score.score!r}")


def read(folder: Path) -> tuple[dict[Path, Run], list[str]]:
    """Every record under a folder, or the one of a file; of copies of a record the first.

    Returns:
        The records by path, and a message for each file that is none; it is left alone.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.exists():
        raise UsageError(
            f"{folder}: no such folder of run records. m2d-bench linear writes runs/; name it with --runs."
        )
    found: dict[Path, Run] = {}
    places: dict[str, Path] = {}
    failures = []
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*.json")):
        try:
            run = load(path)
        except RunError as error:
            failures.append(str(error))
            continue
        first = places.setdefault(run.key, path)
        if first is path:
            found[path] = run
        else:
            logger.warning("%s: the same record as %s; left out.", path, first)
    return found, failures


def add(run: Run, folder: Path, *, replacing_scores: bool = True) -> Run:
    """Adds a run's scores to its record and returns the record as it now stands.

    Scores that another process wrote meanwhile are kept. The file is written beside, flushed and renamed, so that it is
    whole at any moment. Other environments than the first's are kept beside it, under `also`.

    Args:
        run: The run with the new scores.
        folder: Root of the records.
        replacing_scores: Whether scores of the same seed and fold are replaced, with their predictions; else they stay.
    """
    path = run.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        earlier = load(path) if path.exists() else None
        before = {(s.seed, s.fold): s for s in (earlier.scores if earlier else ())}
        new = {(s.seed, s.fold): s for s in run.scores}
        merged = before | new if replacing_scores else new | before
        environment = _environments(earlier.environment, run.environment) if earlier else run.environment
        created = earlier.created if earlier else run.created or _now()
        seconds = {**run.seconds, **(earlier.seconds if earlier else {})}
        scores = tuple(merged[place] for place in sorted(merged))
        run = replace(run, scores=scores, created=created, seconds=seconds, environment=environment)
        with replacing(path) as file:
            file.write(json.dumps(asdict(run), indent=1).encode())
        for seed, fold in before.keys() & new.keys() if replacing_scores else ():
            (path.with_suffix("") / predictions_name(seed, fold)).unlink(missing_ok=True)
    return run


def _environments(first: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first one, and under `also` every other there was."""
    also = [*first.get("also", ()), *other.get("also", ()), {k: v for k, v in other.items() if k != "also"}]
    own = {name: value for name, value in first.items() if name != "also"}
    distinct = [each for place, each in enumerate(also) if each not in [own, *also[:place]]]
    return {**own, "also": distinct} if distinct else own


def predictions_name(seed: int, fold: str) -> str:
    """Name of the file of a seed's and fold's predictions."""
    return file_name(f"{seed}-{fold}.npz")


def keep(run: Run, folder: Path, predictions: Predictions) -> None:
    """Writes predictions beside the record of a run; those of the same seed and fold are replaced."""
    path = run.path(folder).with_suffix("") / predictions_name(predictions.seed, predictions.fold)
    with replacing(path) as file:
        np.savez_compressed(file, **{each.name: getattr(predictions, each.name) for each in fields(Predictions)})


def kept(path: Path) -> list[Predictions]:
    """The predictions kept beside a record, by seed and fold.

    Args:
        path: The record.

    Raises:
        RunError: One of the files cannot be read.
    """
    found = []
    for file in path.with_suffix("").glob("*.npz"):
        try:
            with np.load(file) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            found.append(Predictions(**{**values, "seed": int(values["seed"]), "fold": str(values["fold"])}))
        except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
            raise RunError(f"{file}: no predictions ({error}). Remove it, and run again with --force.") from error
    return sorted(found, key=lambda each: (each.seed, each.fold))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 knew no other metrics at first, nor the command."""
    task = {"other_metrics": (), "domain": "other", **values["task"]}
    return {**values, "task": task, "command": "", "schema": 2}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
