"""How sure a score is of its test clips: the bootstrap over kept predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import ndtri

from m2d_bench.errors import UsageError
from m2d_bench.results.statistics import bootstrap, scale, seed_means
from m2d_bench.runs import Predictions, Run

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, kw_only=True)
class ClipInterval:
    """A score and the 95% interval of drawing other test clips.

    Args:
        score: Mean over seeds and folds, in percent or the metric's unit.
        low: Lower end.
        high: Upper end.
        n_clips: Test clips.
        seeds: Seeds whose predictions were kept.
    """

    score: float
    low: float
    high: float
    n_clips: int
    seeds: int


def clip_interval(
    run: Run,
    predictions: Sequence[Predictions],
    draws: int = 1000,
    progress: Callable[[int], None] = lambda draws: None,
) -> ClipInterval:
    """The interval of a run's score over its test clips, drawn with replacement and the same for every seed.

    Args:
        run: The record.
        predictions: Its predictions (`runs.load_predictions`).
        draws: How often the clips are drawn.
        progress: Called with the number of draws done since it was called last.

    Raises:
        UsageError: No predictions were kept, they are of other scores, or the metric cannot be computed from them.
    """
    name = run.task["metric"]
    if not predictions:
        raise UsageError(
            f"{run.encoder['name']} on {run.task['name']} has no kept predictions. Run m2d-bench linear … "
            "--keep-predictions."
        )
    if name not in _METRICS:
        raise UsageError(f"{run.task['name']} counts {name}; the bootstrap knows {', '.join(_METRICS)}.")
    if draws < 1:
        raise UsageError(f"draws is {draws}; it must be at least 1.")
    metric, predictions = _METRICS[name], _of_record(run, predictions)
    clips = np.unique(np.concatenate([fold.clips for fold in predictions]))
    positions = [np.searchsorted(clips, fold.clips) for fold in predictions]

    def score(drawn: np.ndarray) -> float:
        """Mean over seeds and folds of the metric on the drawn clips of each."""
        counts = np.bincount(drawn, minlength=len(clips))
        values = []
        for fold, position in zip(predictions, positions, strict=True):
            rows = np.repeat(np.arange(len(position)), counts[position])
            if len(rows):
                values.append(metric(fold.labels[rows], fold.scores[rows]))
        progress(1)
        return float(np.nanmean(values))

    low, high = bootstrap(score, len(clips), draws)
    return ClipInterval(
        score=scale(name) * score(np.arange(len(clips))),
        low=scale(name) * low,
        high=scale(name) * high,
        n_clips=len(clips),
        seeds=len({fold.seed for fold in predictions}),
    )


def _of_record(run: Run, predictions: Sequence[Predictions]) -> list[Predictions]:
    """The predictions of the record's whole seeds.

    Raises:
        UsageError: No seed has them all, or they are of other scores than the record's.
    """
    scores = {(score.seed, score.fold): score.score for score in run.scores}
    seeds = seed_means(run)
    counts = Counter(fold.seed for fold in predictions if (fold.seed, fold.fold) in scores)
    complete = [fold for fold in predictions if fold.seed in seeds and counts[fold.seed] == run.task["n_folds"]]
    where = f"{run.encoder['name']} on {run.task['name']}"
    again = "Run m2d-bench linear … --keep-predictions --force."
    if not complete:
        raise UsageError(f"{where}: no seed has the predictions of all its folds. {again}")
    for fold in complete:
        again_scored = _METRICS[run.task["metric"]](fold.labels, fold.scores)
        if abs(again_scored - scores[fold.seed, fold.fold]) > 1e-3:
            raise UsageError(
                f"{where}: the predictions of seed {fold.seed}, fold {fold.fold} score {again_scored:.4f}, the record "
                f"says {scores[fold.seed, fold.fold]:.4f}. {again}"
            )
    return complete


def _truth(labels: np.ndarray) -> np.ndarray:
    """A class a clip, of several its first."""
    return labels if labels.ndim == 1 else labels.argmax(1)


def _accuracy(labels: np.ndarray, scores: np.ndarray, classes: int | None = None) -> float:
    """Where so many classes apart are one, if any are."""
    choice, truth = scores.argmax(1), _truth(labels)
    return float(np.mean((choice - truth) % classes == 0 if classes else choice == truth))


def _icbhi(labels: np.ndarray, scores: np.ndarray, weights: tuple[float, float] = (0.5, 0.5)) -> float:
    """Sensitivity and specificity, weighted."""
    truth = _truth(labels)
    hits = scores.argmax(1) == truth
    shares = [hits[clips].mean() if clips.any() else np.nan for clips in (truth > 0, truth == 0)]
    return float(sum(weight * share for weight, share in zip(weights, shares, strict=True) if weight))


def _over_classes(
    labels: np.ndarray, scores: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], float], negatives: bool = True
) -> float:
    """Mean over the classes that have a positive clip, and a negative one where the metric takes them."""
    positive = (labels if labels.ndim == 2 else np.eye(scores.shape[1])[labels]) > 0
    there = positive.any(0) & ~(positive.all(0) & negatives)
    values = [metric(truth, score) for truth, score in zip(positive.T[there], scores.T[there], strict=True)]
    return float(np.mean(values)) if values else np.nan


def _average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores))


def _area(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores))


def _d_prime(truth: np.ndarray, scores: np.ndarray) -> float:
    half_a_pair = 0.5 / (truth.sum() * (~truth).sum())
    return float(2**0.5 * ndtri(np.clip(_area(truth, scores), half_a_pair, 1 - half_a_pair)))


_METRICS: Mapping[str, Metric] = {
    "accuracy": _accuracy,
    "chroma_accuracy": partial(_accuracy, classes=12),
    "mAP": partial(_over_classes, metric=_average_precision, negatives=False),
    "aucroc": partial(_over_classes, metric=_area),
    "d_prime": partial(_over_classes, metric=_d_prime),
    "sensitivity": partial(_icbhi, weights=(1, 0)),
    "specificity": partial(_icbhi, weights=(0, 1)),
    "icbhi_score": _icbhi,
}
