"""Means, intervals and comparisons: the one place where they are computed.

Every interval is at 95% and Student's; a score is a share from 0 to 1 (or what its metric counts in).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np
from scipy.special import stdtr, stdtrit

from m2d_bench.runs import Run

CONFIDENCE = 0.95

LOWER_IS_BETTER = {"per", "eer", "wer"}
"""Metrics that count errors, in lower case."""

UNITS = {"d_prime": "", "si_sdri": "dB"}
"""Units of metrics that are not shares; those are shown in percent."""


def scale(metric: str) -> float:
    """What turns a score into the unit shown: 100 for shares."""
    return 1 if metric in UNITS else 100


def higher_is_better(metric: str) -> bool:
    """Whether the metric counts what is right."""
    return metric.lower() not in LOWER_IS_BETTER


@dataclass(frozen=True)
class Estimate:
    """Mean of n scores and the half width of its 95% confidence interval, None for n = 1."""

    mean: float
    half_width: float | None
    n: int

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None without an interval."""
        return None if self.half_width is None else self.half_width / quantile(self.n - 1)


@dataclass(frozen=True)
class Difference:
    """A difference of two means.

    Args:
        mean: The difference.
        half_width: Of its 95% confidence interval; None where a side has none.
        p: Two-sided p-value of no difference; None likewise.
    """

    mean: float
    half_width: float | None
    p: float | None


@lru_cache(maxsize=1024)
def quantile(freedom: float) -> float:
    """Half width of the central 95% of Student's t distribution.

    Args:
        freedom: Degrees of freedom.
    """
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def estimate(scores: Sequence[float]) -> Estimate:
    """Mean and half width of Student's t interval with n − 1 degrees of freedom.

    Args:
        scores: One or more independent scores: of seeds, or of n × m runs.
    """
    n = len(scores)
    if n == 1:
        return Estimate(scores[0], None, 1)
    mean = fmean(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (n - 1)
    return Estimate(mean, quantile(n - 1) * math.sqrt(variance / n), n)


def seed_means(run: Run, metric: str | None = None) -> dict[int, float]:
    """One score a seed: the mean over its folds. Seeds that lack folds are left out.

    Args:
        run: The run.
        metric: One of the task's other metrics; by default its first.
    """
    folds: dict[int, list[float]] = {}
    for score in run.scores:
        value = score.score if metric in (None, run.task["metric"]) else score.others[metric]
        folds.setdefault(score.seed, []).append(value)
    return {seed: fmean(value) for seed, value in sorted(folds.items()) if len(value) >= run.task["n_folds"]}


def class_means(run: Run) -> dict[str, dict[str, list[float]]]:
    """Of each class and metric a score a seed: the mean over the folds in which the class can be scored.

    Seeds that lack folds are left out, and classes without any score.
    """
    seeds = run.done(run.task["n_folds"])
    folds: dict[str, dict[str, dict[int, list[float]]]] = {}
    for score in run.scores:
        for name, values in score.per_class.items() if score.seed in seeds else ():
            for metric, value in values.items():
                folds.setdefault(name, {}).setdefault(metric, {}).setdefault(score.seed, []).append(value)
    return {
        name: {metric: [fmean(value) for value in by_seed.values()] for metric, by_seed in of_class.items()}
        for name, of_class in folds.items()
    }


def average(tasks: Iterable[Mapping[Hashable, float] | None]) -> dict[Hashable, float]:
    """Mean over tasks for each run that all of them have; empty if a task is missing.

    Args:
        tasks: Of each task its score a run, by the run's seed or another name; None where it was not run.
    """
    scores = list(tasks)
    present = [task for task in scores if task is not None]
    if not scores or len(present) < len(scores):
        return {}
    return {run: fmean(task[run] for task in present) for run in present[0] if all(run in task for task in present)}


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Difference of means of scores that belong together pair by pair: the paired t-test.

    Args:
        first: Scores, [n].
        second: The ones they are compared with, in the same order, [n].
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    difference = estimate(differences)
    return _tested(difference.mean, difference.error, difference.n - 1)


def welch(first: Estimate, second: Estimate) -> Difference:
    """Difference of two independent means whose variances may differ: Welch's t-test, from means and intervals.

    Source: Welch (1947), with Satterthwaite's degrees of freedom.
    """
    difference = first.mean - second.mean
    if first.error is None or second.error is None:
        return Difference(difference, None, None)
    a, b = first.error**2, second.error**2
    freedom = (a + b) ** 2 / (a**2 / (first.n - 1) + b**2 / (second.n - 1)) if a + b else first.n + second.n - 2.0
    return _tested(difference, math.sqrt(a + b), freedom)


def _tested(difference: float, error: float | None, freedom: float) -> Difference:
    if error is None:
        return Difference(difference, None, None)
    if error == 0:
        return Difference(difference, 0.0, float(difference == 0))
    return Difference(difference, quantile(freedom) * error, float(2 * stdtr(freedom, -abs(difference) / error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order.

    Source: Holm (1979), step-down.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def bootstrap(
    statistic: Callable[[np.ndarray], float], n_clips: int, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of a statistic over test clips drawn with replacement: its percentiles.

    Args:
        statistic: Of the clips at these places, [n].
        n_clips: Number of clips.
        draws: How often they are drawn.
        seed: Of the draws.

    Returns:
        Lower and upper end.

    Source: Efron (1979).
    """
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(n_clips, size=n_clips)) for _ in range(draws)]
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
