"""Every interval and p-value is scipy's."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from m2d_bench.results.statistics import (
    Difference,
    Estimate,
    average,
    bootstrap,
    class_means,
    estimate,
    holm,
    paired,
    quantile,
    seed_means,
    welch,
)
from m2d_bench.runs import Score
from tests.test_runs import RUN, scored


@pytest.mark.parametrize("n", [2, 3, 6, 30])
def test_interval_is_scipys_student_t_interval(n):
    scores = np.random.default_rng(n).uniform(size=n).tolist()
    found = estimate(scores)
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=np.mean(scores), scale=scipy.stats.sem(scores))
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert found.error == pytest.approx(scipy.stats.sem(scores))
    assert found.n == n


def test_one_score_has_no_interval():
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert estimate([0.5]).error is None


def test_quantile_is_scipys():
    for freedom in (1, 5, 5.5, 1e6):
        assert quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom))


def test_a_seed_counts_as_the_mean_of_its_folds_and_unfinished_ones_not_at_all():
    whole = scored(42, "1", "2", score=0.5).scores + scored(43, "1", score=0.7).scores
    run = replace(RUN, scores=(*whole, Score(seed=44, fold="1", score=0.2, n_test=9), *scored(44, "2").scores))
    assert seed_means(run) == pytest.approx({42: 0.5, 44: 0.35})


def test_a_class_counts_by_seed_the_folds_it_can_be_scored_in():
    told = [{"owl": {"mAP": 0.2}, "wren": {"mAP": 0.9}}, {"owl": {"mAP": 0.4}, "wren": {}, "none": {}}]
    scores = [
        replace(score, per_class=classes)
        for seed in (42, 43)
        for score, classes in zip(scored(seed, "1", "2").scores, told, strict=True)
    ]
    unfinished = replace(scored(44, "1").scores[0], per_class=told[0])
    found = class_means(replace(RUN, scores=(*scores, unfinished)))
    assert found == {"owl": {"mAP": pytest.approx([0.3, 0.3])}, "wren": {"mAP": [0.9, 0.9]}}


@pytest.mark.parametrize(("n", "m"), [(6, 6), (3, 9), (2, 30)])
def test_welchs_difference_is_scipys(n, m):
    rng = np.random.default_rng(n * m)
    first, second = rng.normal(0.5, 0.1, n), rng.normal(0.6, 0.02, m)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False)
    found = welch(estimate(first.tolist()), estimate(second.tolist()))
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.half_width == pytest.approx((interval.high - interval.low) / 2)


def test_paired_difference_is_scipys():
    rng = np.random.default_rng(0)
    first = rng.normal(0.5, 0.1, 6)
    second = first + rng.normal(0.02, 0.01, 6)
    expected = scipy.stats.ttest_rel(first, second)
    found = paired(first.tolist(), second.tolist())
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.half_width == pytest.approx((interval.high - interval.low) / 2)


def test_differences_without_spread_are_certain_or_unknown():
    assert paired([0.5, 0.5], [0.5, 0.5]) == Difference(0.0, 0.0, 1.0)
    assert paired([1.0, 1.0], [0.5, 0.5]) == Difference(0.5, 0.0, 0.0)
    assert paired([0.75], [0.5]) == Difference(0.25, None, None)
    assert welch(Estimate(0.75, None, 1), Estimate(0.5, 0.1, 6)) == Difference(0.25, None, None)
    assert welch(Estimate(0.5, 0.0, 6), Estimate(0.5, 0.0, 6)).p == 1.0


def test_holm_is_the_step_down_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_average_takes_the_runs_that_every_task_has_and_needs_every_task():
    tasks = [{42: 0.2, 43: 0.4, 44: 0.9}, {43: 0.6, 42: 0.4}]
    assert average(tasks) == pytest.approx({42: 0.3, 43: 0.5})
    assert average([*tasks, None]) == {}
    assert average([]) == {}


def test_bootstrap_of_a_mean_is_near_its_normal_interval():
    values = np.random.default_rng(0).random(400) < 0.7
    low, high = bootstrap(lambda rows: float(values[rows].mean()), len(values))
    expected = scipy.stats.bootstrap((values.astype(float),), np.mean, method="percentile", rng=1).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.006)
    assert high == pytest.approx(expected.high, abs=0.006)
    assert bootstrap(lambda rows: float(values[rows].mean()), 400) == (low, high)
