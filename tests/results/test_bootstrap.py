"""The bootstrap over test clips agrees with scipy's, and the score with the metric."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import scipy.stats
import torch

from m2d_bench import runs
from m2d_bench.cli import main
from m2d_bench.errors import UsageError
from m2d_bench.evaluation import metrics
from m2d_bench.results.bootstrap import _METRICS, clip_interval
from m2d_bench.runs import Predictions, Score
from m2d_bench.tasks.task import Metric
from tests.test_runs import RUN


def predictions(seed, fold, n=200, multilabel=False, hit=0.7):
    rng = np.random.default_rng([seed, int(fold)])
    labels = rng.integers(3, size=n)
    scores = rng.random((n, 3)) + np.eye(3)[labels] * (rng.random((n, 1)) < hit)
    return Predictions(
        seed=seed,
        fold=fold,
        clips=np.arange(n) + n * int(fold),
        labels=(np.eye(3)[labels] + (rng.random((n, 3)) < 0.2)).clip(max=1) if multilabel else labels,
        scores=scores.astype(np.float32),
        valid_scores=np.array([0.5]),
        classes=np.array(["a", "b", "c"]),
    )


def run_of(kept, metric="accuracy"):
    """The record whose scores these predictions give."""
    scores = [
        Score(
            seed=k.seed, fold=k.fold, score=metrics.score(metric, *map(torch.tensor, (k.scores, k.labels))), n_test=200
        )
        for k in kept
    ]
    n_folds = len({k.fold for k in kept})
    return replace(RUN, task={**RUN.task, "metric": metric, "n_folds": n_folds}, scores=tuple(scores))


def test_interval_of_an_accuracy_is_scipys():
    one = predictions(42, "1")
    found = clip_interval(run_of([one]), [one], draws=4000)
    right = (one.scores.argmax(1) == one.labels).astype(float)
    expected = scipy.stats.bootstrap((right,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert found.score == pytest.approx(100 * right.mean())
    assert found.low == pytest.approx(100 * expected.confidence_interval.low, abs=0.6)
    assert found.high == pytest.approx(100 * expected.confidence_interval.high, abs=0.6)
    assert (found.n_clips, found.seeds) == (200, 1)


def test_score_is_the_mean_over_seeds_and_folds_of_the_tasks_metric():
    kept = [predictions(seed, fold, multilabel=True) for seed in (42, 43) for fold in ("1", "2")]
    run = run_of(kept, "mAP")
    found = clip_interval(run, kept, draws=20)
    assert found.score == pytest.approx(100 * np.mean([score.score for score in run.scores]), abs=0.05)
    assert found.low < found.score < found.high
    assert (found.n_clips, found.seeds) == (400, 2)


OF_ONE_LABEL = ("sensitivity", "specificity", "icbhi_score")
METRICS = [(metric, False) for metric in get_args(Metric)]
METRICS += [(metric, True) for metric in get_args(Metric) if metric not in OF_ONE_LABEL]


@pytest.mark.parametrize(("metric", "multilabel"), METRICS)
def test_every_metric_is_that_of_the_evaluation(metric, multilabel):
    rng = np.random.default_rng(1)
    scores = (5 * rng.random((90, 15))).round().astype(np.float32)
    labels = rng.integers(13, size=90)  # two classes have no clip
    if multilabel:
        labels = (rng.random((90, 15)) < 0.1).astype(np.float32)
        labels[:, 0], labels[:, 1] = 0, 1
    expected = metrics.score(metric, torch.tensor(scores), torch.tensor(labels))
    assert _METRICS[metric](labels, scores) == pytest.approx(expected, abs=1e-9)
    assert np.isnan(_METRICS["icbhi_score"](np.ones(4, dtype=int), scores[:4]))
    assert np.isnan(_METRICS["aucroc"](np.ones((4, 2)), scores[:4, :2]))


def test_more_seeds_do_not_pretend_to_be_more_clips():
    single = clip_interval(run_of([predictions(42, "1")]), [predictions(42, "1")], draws=500)
    same = [replace(predictions(42, "1"), seed=seed) for seed in range(6)]
    several = clip_interval(run_of(same), same, draws=500)
    assert (several.low, several.high) == (single.low, single.high)


def test_what_cannot_be_drawn_is_said(tmp_path, capsys):
    with pytest.raises(UsageError, match="--keep-predictions"):
        clip_interval(RUN, [])
    with pytest.raises(UsageError, match="the bootstrap knows accuracy, chroma_accuracy, mAP"):
        clip_interval(replace(RUN, task={**RUN.task, "metric": "per"}), [predictions(42, "1")])
    kept = [predictions(42, fold) for fold in "12"]
    run = run_of(kept)
    runs.add(run, tmp_path)
    assert main(["runs", "bootstrap", "--runs", str(tmp_path)]) == 1
    assert "no kept predictions" in capsys.readouterr().err
    for each in kept:
        runs.save_predictions(run, tmp_path, each)
    assert main(["runs", "bootstrap", "--runs", str(tmp_path), "--draws", "50"]) == 0
    assert " to " in capsys.readouterr().out


def test_predictions_that_are_not_the_records_are_refused_or_left_out():
    kept = [predictions(seed, fold) for seed in (42, 43) for fold in "12"]
    run = run_of(kept)
    assert clip_interval(run, kept[:3], draws=5).seeds == 1  # seed 43 lacks a fold
    assert clip_interval(run, [*kept, predictions(99, "1")], draws=5).seeds == 2
    with pytest.raises(UsageError, match="no seed has the predictions of all its folds"):
        clip_interval(run, kept[:1])
    with pytest.raises(UsageError, match=r"seed 42, fold 1 score 0\.\d+, the record says"):
        clip_interval(run, [predictions(42, "1", hit=0.1), *kept[1:]])
    with pytest.raises(UsageError, match="draws is 0"):
        clip_interval(run, kept, draws=0)
