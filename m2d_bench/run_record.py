"""A run's record: what its JSON file holds and which path is its identity. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, GetPydanticSchema, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.config import with_config
from typing_extensions import NotRequired, TypedDict

from m2d_bench.settings import file_name
from m2d_bench.values import explain

SCHEMA = 4
SYNTHETIC = " (synthetic)"
"""Stands behind the name of a task whose clips are generated, wherever it is shown."""

Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
"""A score or a time, within what sums and squares of many can hold."""

Name = Annotated[str, Field(pattern=r"^[^\W_]", max_length=200)]
"""A part of a record's path, once `file_name` has made it one; it cannot lead out of the folder."""


def _holding(**needed: Any) -> GetPydanticSchema:
    """The check of a mapping that holds at least what readers and merging need of it, by name."""
    form = with_config(ConfigDict(extra="allow", strict=True))(TypedDict("Form", needed))  # type: ignore[operator]
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
        per_class: Where clips may have several labels, of each class its score in the metrics that are means over
            classes.
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
    per_class: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)


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

    encoder: Annotated[Mapping[str, Any], _holding(name=str, digest=Name, aliases=NotRequired[list[str]])]
    task: Annotated[
        Mapping[str, Any],
        _holding(
            name=Name,
            version=int,
            metric=str,
            other_metrics=list[str],
            domain=str,
            fingerprint=str,
            synthetic=bool,
            n_folds=PositiveInt,
        ),
    ]
    protocol: Annotated[str, Field(pattern=r"^[^\W_][\w.=-]*$", max_length=100)]
    settings: Annotated[Mapping[str, Any], _holding(train_fraction=NotRequired[Annotated[float, Field(gt=0, le=1)]])]
    repeated: tuple[str, ...] = ()
    environment: Annotated[Mapping[str, Any], _holding(also=NotRequired[list[dict[str, Any]]])] = field(
        default_factory=dict
    )
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
        digest, task = file_name(self.encoder["digest"]), file_name(self.task["name"])
        return folder / digest / task / f"{self.protocol}-{self.key}.json"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoder, the first the one it is shown under."""
        return (self.encoder["name"], *self.encoder.get("aliases", ()))

    def named(self, *names: str) -> Run:
        """The same record with these names first, then the others it had."""
        name, *aliases = dict.fromkeys((*names, *self.names))
        return replace(self, encoder={**self.encoder, "name": name, **({"aliases": aliases} if aliases else {})})

    @property
    def by_fold(self) -> dict[tuple[int, str], Score]:
        """The scores by seed and fold."""
        return {(score.seed, score.fold): score for score in self.scores}

    def done(self, n_folds: int) -> set[int]:
        """Seeds of which every fold has a score."""
        folds = Counter(seed for seed, _ in self.by_fold)
        return {seed for seed, count in folds.items() if count >= n_folds}

    def limited_to(self, seeds: Iterable[int]) -> Run:
        """The same record with the scores of these seeds alone."""
        wanted = set(seeds)
        return replace(self, scores=tuple(score for score in self.scores if score.seed in wanted))


def paths(path: Path) -> list[Path]:
    """Where an identity's record may lie: its path, then the folders of before schema 3, under the encoder's names.

    The name of a record's file holds its identity, so that it is the same in every folder.
    """
    others = path.parent.parent.parent.glob(f"*/{path.parent.name}/{path.name}")
    return [path, *(other for other in sorted(others) if other != path)]


@cache
def _adapter() -> TypeAdapter[Run]:
    return TypeAdapter(Run)


def parse(text: str) -> Run:
    """The record of a JSON text; one of an older schema is upgraded.

    Raises:
        ValueError: It is none, or one of a newer schema; says why.
    """
    try:
        values = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)
        if values["schema"] not in range(1, SCHEMA + 1):
            raise ValueError(f"schema {values['schema']!r}; this version reads 1 to {SCHEMA}. Update m2d-bench")
        if values["schema"] == 1:  # knew no other metrics at first, nor domain and command
            values = {"command": "", **values, "task": {"other_metrics": [], "domain": "other", **values["task"]}}
        run = _adapter().validate_json(json.dumps({**values, "schema": SCHEMA}))
        for score in run.scores:
            if missing := set(run.task["other_metrics"]) - set(score.others):
                raise ValueError(f"no {', '.join(sorted(missing))} of seed {score.seed}, fold {score.fold}")
    except ValidationError as error:
        raise ValueError(explain(error).rstrip(".")) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return run


def _number(text: str) -> int | float:
    """A number of a record; NaN, infinities and what is beyond the machine's numbers are refused."""
    number = int(text) if text.lstrip("-").isdigit() else float(text)
    if number.bit_length() > 64 if isinstance(number, int) else not math.isfinite(number):
        raise ValueError(f"the number {text[:40]}, which is not finite or too large")
    return number
