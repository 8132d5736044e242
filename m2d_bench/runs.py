"""A run's record: one JSON file per encoder, task, protocol and settings, holding raw scores only. No torch here.

RUNS/DIGEST/TASK/PROTOCOL-key.json      the record
RUNS/DIGEST/TASK/PROTOCOL-key/*.npz     predictions, one file per seed and fold, where they were asked for

The path is the identity: a model that is known under several names has one record, which lists them. Up to schema 2 the
folder was NAME-digest; such records are read, and are merged into the new path when it is next written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import cache, reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from filelock import FileLock
from pydantic import ConfigDict, Field, GetPydanticSchema, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.config import with_config
from typing_extensions import NotRequired, TypedDict

from m2d_bench.errors import M2DBenchError, RunError, UsageError, describe
from m2d_bench.settings import file_name, replacing
from m2d_bench.values import explain

logger = logging.getLogger(__name__)

SCHEMA = 3
SYNTHETIC = " (synthetic)"
"""Stands behind the name of a task whose clips are generated, wherever it is shown."""

_PACKAGES = (
    *("m2d-bench", "torch", "numpy", "scipy", "scikit-learn", "soundfile", "soxr", "nnAudio"),
    *("espeakng-loader", "pretty_midi", "lightning-fabric", "pytorch-optimizer"),
)


Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
"""A score or a time, within what sums and squares of many can hold."""

Name = Annotated[str, Field(pattern=r"^[^\W_]", max_length=200)]
"""A part of a record's path, once `file_name` has made it one; it cannot lead out of the folder."""

_STRICT = ConfigDict(extra="allow", strict=True)


@with_config(_STRICT)
class _Encoder(TypedDict):
    """What every reader needs of a record's encoder."""

    name: str
    digest: Name
    aliases: NotRequired[list[str]]


@with_config(_STRICT)
class _Settings(TypedDict):
    """What readers need of a record's settings."""

    train_fraction: NotRequired[Annotated[float, Field(gt=0, le=1)]]


@with_config(_STRICT)
class _Environment(TypedDict):
    """What merging needs of a record's environment."""

    also: NotRequired[list[dict[str, Any]]]


@with_config(_STRICT)
class _Task(TypedDict):
    """What every reader needs of a record's task."""

    name: Name
    version: int
    metric: str
    other_metrics: list[str]
    domain: str
    fingerprint: str
    synthetic: bool
    n_folds: PositiveInt


def _checked_as(form: type) -> GetPydanticSchema:
    """The check of a mapping by a typed dictionary."""
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(form))


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

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    seed: int
    fold: str
    score: Number
    n_test: NonNegativeInt
    seconds: Number = 0.0
    valid_score: Number | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything needed to print, compare and repeat a result; means and intervals are computed on reading.

    Args:
        encoder: name, digest, aliases (its other names, where it has any), and whatever else describes it.
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

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    encoder: Annotated[Mapping[str, Any], _checked_as(_Encoder)]
    task: Annotated[Mapping[str, Any], _checked_as(_Task)]
    protocol: Annotated[str, Field(pattern=r"^[^\W_][\w.=-]*$", max_length=100)]
    settings: Annotated[Mapping[str, Any], _checked_as(_Settings)]
    repeated: tuple[str, ...] = ()
    environment: Annotated[Mapping[str, Any], _checked_as(_Environment)] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    seconds: Mapping[str, Number] = field(default_factory=dict)
    command: str = ""
    created: str = ""
    schema: int = SCHEMA

    @property
    def task_title(self) -> str:
        """Name of the task as it is shown, with a word where its clips are generated."""
        return f"{self.task['name']}{SYNTHETIC if self.task['synthetic'] else ''}"

    @property
    def key(self) -> str:
        """Identity of the record: encoder, task, protocol and settings, 10 hexadecimal digits."""
        task = [self.task[name] for name in ("name", "version", "fingerprint", "metric")]
        task += self.task["other_metrics"]
        identity = [self.encoder["digest"], task, self.protocol, self.settings]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]

    def path(self, folder: Path) -> Path:
        """Path of the record, which is its identity: `folder/digest/task/protocol-key.json`."""
        return (
            folder
            / file_name(self.encoder["digest"])
            / file_name(self.task["name"])
            / f"{self.protocol}-{self.key}.json"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoder, the first the one it is shown under."""
        return (self.encoder["name"], *self.encoder.get("aliases", ()))

    def named(self, *names: str) -> Run:
        """The same record with these names first, then the others it had."""
        name, *aliases = dict.fromkeys((*names, *self.names))
        return replace(self, encoder={**self.encoder, "name": name, **({"aliases": aliases} if aliases else {})})

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
        self.messages = tuple(f"{task} failed: {describe(error)}" for task, error in failures.items())
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


@cache
def _adapter() -> TypeAdapter[Run]:
    return TypeAdapter(Run)


def load(path: Path) -> Run:
    """Reads a record; one of an older schema is upgraded.

    Raises:
        RunError: Not a run record, or one of a newer schema.
    """
    try:
        if not path.is_file():  # reading a pipe would wait
            raise OSError("no file")
        return _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, _NoRecord) as error:
        raise RunError(f"{path}: not a run record ({error}). Move it away to go on.") from error


class _NoRecord(Exception):
    """What is wrong with a record's text."""


def _parse(text: str) -> Run:
    """The record of a JSON text.

    Raises:
        _NoRecord: It is none.
    """
    try:
        values = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)
        if values["schema"] not in range(1, SCHEMA + 1):
            raise ValueError(f"schema {values['schema']!r}; this version reads 1 to {SCHEMA}. Update m2d-bench")
        run = _adapter().validate_json(json.dumps(_upgraded(values)))
        for score, metric in ((score, metric) for score in run.scores for metric in run.task["other_metrics"]):
            if metric not in score.others:
                raise ValueError(f"no {metric} of seed {score.seed}, fold {score.fold}")
    except ValidationError as error:
        raise _NoRecord(explain(error).rstrip(".")) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _NoRecord(f"{type(error).__name__}: {error}") from error
    return run


def _number(text: str) -> int | float:
    """A number of a record; NaN, infinities and what is beyond the machine's numbers are refused."""
    number = int(text) if text.lstrip("-").isdigit() else float(text)
    if number.bit_length() > 64 if isinstance(number, int) else not math.isfinite(number):
        raise ValueError(f"the number {text[:40]}, which is not finite or too large")
    return number


def _upgraded(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record in today's schema; schema 1 knew no other metrics at first, nor domain and command."""
    if values["schema"] == 1:
        values = {"command": "", **values, "task": {"other_metrics": [], "domain": "other", **values["task"]}}
    return {**values, "schema": SCHEMA}


def paths(path: Path) -> list[Path]:
    """Where an identity's record may lie: its path, then the folders of before schema 3, under the encoder's names.

    The name of a record's file holds its identity, so that it is the same in every folder.
    """
    others = path.parent.parent.parent.glob(f"*/{path.parent.name}/{path.name}")
    return [path, *(other for other in sorted(others) if other != path)]


def find(run: Run, folder: Path) -> Run | None:
    """The stored record of a run's identity, or None.

    Args:
        run: A run, whose scores do not matter.
        folder: Root of the records.

    Raises:
        RunError: A file in the record's path is none.
    """
    stored = [load(path) for path in paths(run.path(folder)) if path.exists()]
    return _union(stored) if stored else None


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
        stored = {place: load(place) for place in paths(path) if place.exists()}
        earlier = _union(list(stored.values())) if stored else replace(run, scores=(), created=run.created or _now())
        record = _merged(run, earlier, replacing_scores)
        text = json.dumps(asdict(record), indent=1)
        try:
            _parse(text)
        except _NoRecord as error:
            raise RunError(f"{path}: not written, for it would be no run record ({error}).") from error
        for place, old in stored.items():
            copy_predictions(place, path, [score for score in old.scores if score in earlier.scores])
        with replacing(path) as file:
            file.write(text.encode())
        for seed, fold in _by_fold(earlier).keys() & _by_fold(run).keys() if replacing_scores else ():
            (path.with_suffix("") / predictions_name(seed, fold)).unlink(missing_ok=True)
        for place in stored.keys() - {path}:
            _remove(place)
    return record


def _by_fold(run: Run) -> dict[tuple[int, str], Score]:
    return {(score.seed, score.fold): score for score in run.scores}


def _union(records: Sequence[Run]) -> Run:
    """Records of one identity as one; of scores of the same seed and fold the first record's stay."""
    union = reduce(lambda earlier, later: _merged(later, earlier, replacing_scores=False), records)
    return replace(union, task=records[0].task, command=records[0].command)


def _merged(run: Run, earlier: Run, replacing_scores: bool) -> Run:
    """A record with what a run adds: the latest command, the earliest name and environment."""
    before, new = _by_fold(earlier), _by_fold(run)
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
    own, others = ({key: value for key, value in each.items() if key != "also"} for each in (first, other))
    also = [each for each in (*first.get("also", ()), *other.get("also", ()), others) if each not in ({}, own)]
    distinct = [each for index, each in enumerate(also) if each not in also[:index]]
    return {**own, "also": distinct} if distinct else own


def predictions_name(seed: int, fold: str) -> str:
    """Name of the file of a seed's and fold's predictions; folds whose names a file cannot bear are told apart."""
    name = file_name(fold)
    mark = "" if name == fold else "-" + hashlib.sha256(os.fsencode(fold)).hexdigest()[:8]
    return f"{seed}-{name}{mark}.npz"


def save_predictions(run: Run, folder: Path, predictions: Predictions) -> None:
    """Writes predictions beside the record of a run; those of the same seed and fold are replaced."""
    path = run.path(folder).with_suffix("") / predictions_name(predictions.seed, predictions.fold)
    with replacing(path) as file:
        np.savez_compressed(file, **{each.name: getattr(predictions, each.name) for each in fields(Predictions)})


def load_predictions(path: Path) -> list[Predictions]:
    """The predictions beside a record, by seed and fold; also those in older schemas' folders of the same identity.

    Args:
        path: The record.

    Raises:
        RunError: One of the files cannot be read.
    """
    files: dict[str, Path] = {}
    for place in paths(path):
        files = {file.name: file for file in place.with_suffix("").glob("*.npz")} | files
    return sorted(map(_read_predictions, files.values()), key=lambda each: (each.seed, each.fold))


def copy_predictions(source: Path, target: Path, scores: Iterable[Score]) -> None:
    """Copies the predictions behind scores from beside one record to beside another, where they are missing."""
    for score in scores:
        name = predictions_name(score.seed, score.fold)
        file, copy = source.with_suffix("") / name, target.with_suffix("") / name
        if file.exists() and not copy.exists():
            with replacing(copy) as opened:
                opened.write(file.read_bytes())


def _read_predictions(file: Path) -> Predictions:
    try:
        with np.load(file) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        found = Predictions(**{**values, "seed": int(values["seed"]), "fold": str(values["fold"])})
        _check_predictions(found)
    except Exception as error:  # whatever a broken zip raises
        raise RunError(f"{file}: no predictions ({error}). Remove it, and run again with --force.") from error
    return found


def _check_predictions(found: Predictions) -> None:
    """Raises a ValueError where shapes, types or values are not those of predictions."""
    n_clips, n_classes = found.scores.shape
    shapes = {"clips": (n_clips,), "classes": (n_classes,), "valid_scores": found.valid_scores.shape[:1]}
    shapes["labels"] = (n_clips,) if found.labels.ndim == 1 else (n_clips, n_classes)
    for name, shape in shapes.items():
        if getattr(found, name).shape != shape:
            raise ValueError(f"{name} {list(getattr(found, name).shape)}, scores [{n_clips}, {n_classes}]")
    for name in ("clips", "labels", "scores", "valid_scores"):
        if not np.isfinite(getattr(found, name)).all():
            raise ValueError(f"{name} are not finite")
    if found.labels.ndim == 1 and not np.isin(found.labels, np.arange(n_classes)).all():
        raise ValueError(f"labels beyond {n_classes} classes")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
