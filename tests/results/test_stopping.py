"""Seeds end where the interval is narrow or the comparison decided, and whoever asks often is not misled."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from m2d_bench.results.stopping import enough
from m2d_bench.runs import Score
from tests.test_runs import RUN


def of(scores, name="a", metric="accuracy"):
    """A record of one fold whose seeds score so."""
    scores = [Score(seed=42 + n, fold="1", score=float(score), n_test=9) for n, score in enumerate(scores)]
    task = {**RUN.task, "metric": metric, "n_folds": 1}
    return replace(RUN, encoder={"name": name, "digest": name * 16}, task=task, scores=tuple(scores))


def half_width(scores):
    return scipy.stats.t.ppf(0.975, len(scores) - 1) * scipy.stats.sem(scores)


@pytest.mark.parametrize(("metric", "factor"), [("accuracy", 100), ("d_prime", 1)])
def test_the_half_width_that_the_table_shows_decides(metric, factor, caplog):
    scores = [0.50, 0.52, 0.53, 0.49]
    width = factor * half_width(scores)
    assert enough([of(scores, metric=metric)], width * 1.001, compared=False)
    assert not enough([of(scores, metric=metric)], width * 0.999, compared=False)
    assert not enough([of(scores, metric=metric), of([0, 0, 1, 1], "b", metric)], width * 1.001, compared=False)
    assert not caplog.text


def test_beyond_thirty_seeds_nothing_goes_on_and_it_is_said(caplog):
    scores = np.random.default_rng(0).random(30)
    assert not enough([of(scores[:29])], 0.5, compared=False)
    assert enough([of(scores)], 0.5, compared=False)
    width = f"± {100 * half_width(scores):.2f} %"
    assert caplog.messages == [f"esc10, 30 seeds, the most there are: {width} is not below 0.5."]
    assert enough([of(scores), of(scores[::-1], "b")], 0.5, compared=True)
    assert caplog.messages[1].endswith("not decided.")


def test_a_seed_that_repeats_nothing_is_enough():
    assert enough([of([0.5])], 0.1, compared=False)
    assert enough([of([0.5]), of([0.4], "b")], 0.1, compared=True)


def test_a_comparison_is_decided_by_the_paired_test_corrected_for_every_look(caplog):
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.6, 0.05, 8), rng.normal(0.6, 0.05, 8)
    for shift, says in ((0.0, None), (0.3, "decided, p = ")):
        p = 28 * scipy.stats.ttest_rel(first + shift, second).pvalue
        assert (p < 0.05) == bool(says)
        assert enough([of(first + shift), of(second, "b")], 0.5, compared=True) == bool(says)
    mean = 100 * np.mean(first + 0.3 - second)
    assert f"esc10, 8 seeds: a − b = +{mean:.2f} ± " in caplog.text
    assert f"decided, p = {p:.2g} after" in caplog.text


def test_a_difference_known_closely_enough_ends_a_comparison_undecided(caplog):
    first = np.array([0.50, 0.60, 0.70])
    assert enough([of(first), of(first + np.array([0.001, -0.001, 0.0]), "b")], 0.5, compared=True)
    assert "a − b = +0.00 ± 0.25 %: not decided." in caplog.text
    assert enough([of(first), of(first - 0.25, "b")], 0.5, compared=True)  # the same difference thrice proves nothing
    assert "a − b = +25.00 ± 0.00 %: the same with every seed." in caplog.text


def test_looking_after_every_seed_finds_few_differences_that_are_not_there(caplog):
    rng = np.random.default_rng(0)
    for first, second in rng.normal(0.5, 0.02, (60, 2, 30)):
        for n in range(3, 31):
            if enough([of(first[:n]), of(second[:n], "b")], 1e-9, compared=True):
                break
    assert len(caplog.messages) == 60
    assert sum(": decided" in message for message in caplog.messages) <= 3
