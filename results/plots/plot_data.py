"""What a plot shows: which records, under what names, their scores in the unit shown, numeric fields of a record."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from m2d_bench.errors import UsageError
from m2d_bench.results.records import variants
from m2d_bench.results.statistics import UNITS, Estimate, estimate, higher_is_better, scale, seed_means
from m2d_bench.runs import Run

logger = logging.getLogger(__name__)

LAYER = "settings.layer"
"""Field of the records of `m2d-bench linear --layer`."""

KEEP = "Run m2d-bench linear … --keep-predictions."
"""What to do where predictions are missing."""

_IN_NAME = {"mask_ratio": r"-?(?<![a-zA-Z0-9])mr(\d+)", "epoch": r"-e(\d+)(?![a-zA-Z0-9])"}
_IN_PATH = r"(?:checkpoint-|-e)(\d+)(?:\.\w+)?(?![\w.])"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A record as it is drawn.

    Args:
        label: The encoder's name, and whatever tells it from the others shown.
        task: Its name, "(synthetic)" if it is.
        metric: What is counted.
        scores: One a seed, in percent or the metric's unit.
    """

    label: str
    task: str
    metric: str
    scores: tuple[float, ...]

    @property
    def estimate(self) -> Estimate:
        """Mean and 95% half width."""
        return estimate(self.scores)

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric counts errors."""
        return not higher_is_better(self.metric)


def labels(records: Sequence[Run], without: str | None = None) -> list[str]:
    """A name for each record: the encoder's and, in brackets, the protocol and settings where these differ.

    Args:
        records: Everything shown in one figure.
        without: Field (see `number`) that the figure shows elsewhere and that therefore tells nothing apart.
    """
    several = len({run.protocol for run in records}) > 1
    named = [_without(run, without) if without else run for run in records]
    names = []
    for run, variant in zip(named, variants(named, keys=without is None), strict=True):
        details = ", ".join(filter(None, [run.protocol if several else "", variant]))
        names.append(run.encoder["name"] + (f" ({details})" if details else ""))
    return names


def _without(run: Run, field: str) -> Run:
    """The record as if it had no such field; weights that differ in it are the same model's."""
    if field in _IN_NAME:
        name = re.sub(_IN_NAME[field], "", run.encoder["name"])
        return replace(run, encoder={**run.encoder, "name": name, "digest": ""})
    first, *rest = field.split(".")
    if first == "encoder":
        return replace(run, encoder={**run.encoder, "digest": ""})
    return replace(run, settings=_removed(run.settings, rest)) if first == "settings" and rest else run


def _removed(values: Any, parts: Sequence[str]) -> Any:
    if not isinstance(values, Mapping) or parts[0] not in values:
        return values
    rest = {name: value for name, value in values.items() if name != parts[0]}
    return rest if len(parts) == 1 else {**rest, parts[0]: _removed(values[parts[0]], parts[1:])}


def axis_title(metric: str) -> str:
    """The metric with its unit, and its direction where lower is better."""
    unit = UNITS.get(metric, "%")
    return metric + (f" ({unit})" if unit else "") + ("" if higher_is_better(metric) else ", lower is better")


def limits(metric: str, low: float, high: float, scores: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: those that fit what is drawn, of shares not below 0% nor above 100% unless a score is."""
    if UNITS.get(metric, "%") != "%":
        return low, high
    return low if min(scores) < 0 else max(low, 0), high if max(scores) > 100 else min(high, 100)


def span(counts: Iterable[int]) -> str:
    """How many: `6`, or `3 to 6` where they differ."""
    low, high = min(counts := set(counts)), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def collect(records: Sequence[Run]) -> list[Result]:
    """The records as they are drawn; those without a finished seed are named in a warning and left out.

    Raises:
        UsageError: None has a finished seed.
    """
    drawn = []
    for run, label in zip(records, labels(records), strict=True):
        if scores := seed_scores(run):
            drawn.append(Result(label=label, task=run.task_title, metric=run.task["metric"], scores=scores))
        else:
            logger.warning("%s on %s: no seed is finished; left out.", label, run.task["name"])
    if not drawn:
        raise UsageError(f"None of the {len(records)} records has a finished seed. Run m2d-bench linear again.")
    return drawn


def seed_scores(run: Run) -> tuple[float, ...]:
    """One score a finished seed, in the unit shown."""
    return tuple(scale(run.task["metric"]) * score for score in seed_means(run).values())


def number(run: Run, field: str) -> float | None:
    """A numeric field of a record, None where it has none.

    Args:
        run: The record.
        field: A dotted path such as `settings.train_fraction` or `encoder.config.vit.patch_size.1`; `mask_ratio`, from
            `mr7` in the encoder's name; or `epoch`, from `-e300` in it, or from `checkpoint-300.pth` in it, in the
            path of the weights or in the command.
    """
    if field == "mask_ratio":
        match = re.search(_IN_NAME[field], run.encoder["name"])
        return float(f"0.{match[1]}") if match else None
    if field == "epoch":
        match = re.search(_IN_NAME[field], run.encoder["name"])
        texts = [value for value in (*run.encoder.values(), *run.settings.values()) if isinstance(value, str)]
        matches = [match, *(re.search(_IN_PATH, text) for text in (*texts, run.command))]
        return next((float(match[1]) for match in matches if match), None)
    value: Any = {"encoder": run.encoder, "task": run.task, "settings": run.settings}
    for part in field.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
