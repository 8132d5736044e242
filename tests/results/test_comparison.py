"""Runs beside each other and beside the papers: the right rows, the right averages, the right marks."""

import logging
import shlex
from dataclasses import replace

import pytest

from m2d_bench.errors import UsageError
from m2d_bench.results.comparison import Selection, compare
from m2d_bench.results.papers import published
from m2d_bench.results.records import variants
from m2d_bench.results.render import cells
from m2d_bench.results.statistics import estimate, holm, paired, welch
from tests.results.result_records import fixed, record


def found(runs, **choice):
    like = choice.pop("like", None)
    table = compare(runs, Selection(**choice), like)
    return {(cell["model"], cell["task"]): cell for cell in cells(table)}


def test_a_row_a_model_and_a_column_a_task():
    table = compare(fixed())
    assert [row.model for row in table.rows] == ["m2d_a", "m2d_b", "m2d_b & c_50%"]
    assert [(column.protocol, column.task) for column in table.columns] == [
        ("linear", "esc50"),
        ("linear", "gtzan"),
        ("linear", "us8k"),
        ("linear", "environment (2 tasks)"),
        ("linear", "average (3 tasks)"),
        ("superb", "superb:pr"),
    ]


def test_values_are_the_estimates_over_seeds_in_percent():
    cell = found(fixed())["m2d_a", "us8k"]
    expected = estimate([80 + (seed - 2.5) for seed in range(6)])
    assert cell["value"] == pytest.approx(expected.mean)
    assert cell["ci95"] == pytest.approx(expected.half_width, abs=1e-6)
    assert cell["n"] == 6


def test_an_average_needs_every_task_and_takes_the_common_seeds():
    values = found(fixed())
    assert values["m2d_a", "environment (2 tasks)"]["value"] == pytest.approx(85.0)
    assert values["m2d_a", "environment (2 tasks)"]["ci95"] == pytest.approx(values["m2d_a", "us8k"]["ci95"], abs=1e-4)
    assert values["m2d_a", "average (3 tasks)"]["n"] == 1  # gtzan ran one seed
    assert ("m2d_b", "average (3 tasks)") not in values
    assert ("m2d_b & c_50%", "environment (2 tasks)") not in values


def test_beside_a_paper_tasks_go_by_its_names_and_averages_need_all_of_them():
    runs = [*fixed(), record("m2d_a", "esc50", 0.9, protocol="knn")]
    runs[0] = replace(runs[0], task={**runs[0].task, "name": "evar:esc50"})
    values = found(runs, like="m2dx-2024:III")
    assert values["m2d_a", "esc50"]["value"] == pytest.approx(90.0)
    assert values["m2d_a", "esc50"]["source"] == "m2d-bench"
    assert values["M2D/0.7", "esc50"]["source"] == "m2dx-2024 III"
    assert ("m2d_a", "avg") not in values
    values = found(runs, like="m2dx-2024:X")
    assert values["m2d_a", "pr"]["value"] == pytest.approx(5.0)
    assert values["m2d_a", "env"]["value"] == pytest.approx(85.0)
    assert ("m2d_a", "mus") not in values


def test_errors_are_better_when_low_and_equal_values_share_their_rank():
    values = found([*fixed(), record("m2d_c", "superb:pr", 0.06, protocol="superb")])
    ranks = {model: cell["rank"] for (model, task), cell in values.items() if task == "superb:pr"}
    assert ranks == {"m2d_a": 1, "m2d_b": 2, "m2d_c": 2}


def test_ties_are_those_whose_difference_may_be_zero():
    runs = [record("a", "us8k", 0.80), record("b", "us8k", 0.79, seeds=5), record("c", "us8k", 0.60, seeds=5)]
    values = found(runs)
    assert [values[model, "us8k"]["ties_with_best"] for model in "abc"] == [False, True, False]
    single = found([record("a", "us8k", 0.80, seeds=1), record("b", "us8k", 0.80 - 1e-9)])
    assert not single["b", "us8k"]["ties_with_best"]  # one seed has no interval
    paired_seeds = found([record("a", "us8k", 0.80), record("b", "us8k", 0.79)])  # a constant difference
    assert not paired_seeds["b", "us8k"]["ties_with_best"]


def test_differences_are_paired_over_the_same_seeds_else_welchs_and_corrected_together():
    first, second = record("a", "us8k", 0.80), record("b", "us8k", 0.79, seeds=6)
    other = record("c", "us8k", 0.785, seeds=4)
    second = replace(second, scores=tuple(replace(s, score=s.score + 0.003 * (s.seed % 3)) for s in second.scores))
    values = found([first, second, other], baseline="a")
    seeds = [[cell["value"]] for cell in values.values()]
    assert len(seeds) == 3
    base = [80 + seed - 2.5 for seed in range(6)]
    mine = [79 + seed - 2.5 + 0.3 * ((42 + seed) % 3) for seed in range(6)]
    pair = paired(mine, base)
    free = welch(estimate([78.5 + seed - 1.5 for seed in range(4)]), estimate(base))
    assert values["b", "us8k"]["difference"] == pytest.approx(pair.mean, abs=1e-5)
    assert values["b", "us8k"]["difference_ci95"] == pytest.approx(pair.half_width, abs=1e-5)
    assert values["c", "us8k"]["difference_ci95"] == pytest.approx(free.half_width, abs=1e-5)
    corrected = holm([pair.p, free.p])
    assert [values[model, "us8k"]["p_holm"] for model in "bc"] == pytest.approx(corrected, abs=1e-5)
    assert values["a", "us8k"]["difference"] is None


def test_a_printed_interval_counts_as_of_many_runs():
    runs = [record("a", "us8k", 0.876)]
    cell = found(runs, like="m2dx-2024:III", baseline="a", models=("a", "M2D/0.6"))["M2D/0.6", "us8k"]
    ours = estimate([87.6 + seed - 2.5 for seed in range(6)])
    assert cell["difference"] == pytest.approx(87.2 - 87.6)
    assert cell["difference_ci95"] == pytest.approx(welch(type(ours)(87.2, 0.3, 10**6), ours).half_width, abs=1e-5)
    bare = found(runs, like="m2dx-2024:III", baseline="a")["ATST Base", "us8k"]
    assert (bare["difference"], bare["difference_ci95"], bare["p_holm"]) == (pytest.approx(-1.8), None, None)


def test_settings_that_differ_make_rows_of_their_own():
    runs = [*fixed(), record("m2d_a", "us8k", 0.6, epochs=10)]
    assert variants(runs)[:4] == ["", "", "", ""]
    values = found(runs)
    assert values["m2d_a", "us8k"]["value"] == pytest.approx(80)
    assert values["m2d_a", "esc50"]["value"] == pytest.approx(90)
    assert values["m2d_a (epochs=10)", "us8k"]["value"] == pytest.approx(60)
    assert values["m2d_b", "us8k"]["value"] == pytest.approx(81)


def test_two_encoders_of_one_name_are_told_apart_by_their_weights():
    values = found([record("a", "us8k", 0.8, digest="1" * 16), record("a", "us8k", 0.7, digest="2" * 16)])
    assert {model for model, _ in values} == {"a (weights=11111111)", "a (weights=22222222)"}


def test_encoders_under_one_label_count_by_all_their_runs():
    runs = [record("pre1", "us8k", 0.80), record("pre2", "us8k", 0.82), record("pre3", "us8k", 0.5)]
    cell = found(runs, models=("M2D=pre1+pre2",))["M2D", "us8k"]
    scores = [mean + seed - 2.5 for mean in (80, 82) for seed in range(6)]
    assert cell["n"] == 12
    assert cell["ci95"] == pytest.approx(estimate(scores).half_width, abs=1e-5)


def test_models_tasks_and_protocol_are_chosen():
    table = compare(fixed(), Selection(models=("M2D_B*",), tasks=("us8k", "pr")))
    assert {row.model for row in table.rows} == {"m2d_b", "m2d_b & c_50%"}
    assert {column.task for column in table.columns} == {"us8k", "superb:pr"}
    table = compare(fixed(), Selection(protocol="superb"))
    assert [column.task for column in table.columns] == ["superb:pr"]
    table = compare([], Selection(models=("M2D*", "beats"), tasks=("esc50", "avg")), "m2dx-2024:III")
    assert {row.model for row in table.rows} >= {"M2D/0.7", "BEATs", "BEATs (SSL+labels)"}
    assert [column.task for column in table.columns] == ["esc50", "avg"]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"models": ("m2d_x",)}, "Unknown model 'm2d_x'. Did you mean m2d_"),
        ({"tasks": ("esc5",)}, "Unknown task 'esc5'. Did you mean esc50"),
        ({"protocol": "liner"}, "Unknown protocol 'liner'. Did you mean linear"),
        ({"baseline": "m2d_x"}, "Unknown baseline 'm2d_x'"),
        ({"models": ("M2D=m2d_a+m2d_c",)}, "Unknown model 'm2d_c'"),
        ({"baseline": "m2d_*"}, "fits 3 rows"),
        ({"models": ("A=m2d_a", "B=m2d_a+m2d_b")}, "m2d_a stands under A and under B"),
        ({"models": ("m2d_a=m2d_b",)}, "m2d_a is the name of an encoder"),
        ({"like": "m2dx-2024:3"}, "Unknown published table"),
        ({"like": "m2dx-2024:III", "tasks": ("esc5",)}, "Unknown task 'esc5'"),
    ],
)
def test_what_fits_nothing_is_named(choice, says):
    with pytest.raises(UsageError, match=says):
        found(fixed(), **choice)


def test_a_run_that_counts_another_metric_than_the_paper_is_left_out_and_named(caplog):
    run = record("a", "us8k", 0.8)
    run = replace(run, task={**run.task, "metric": "mAP"})
    with caplog.at_level(logging.WARNING):
        assert not any(model == "a" for model, _ in found([run], like="m2dx-2024:III"))
    assert "counts mAP, the table accuracy" in caplog.text


def test_two_tasks_of_ours_that_are_one_of_the_papers_stay_apart():
    first, second = record("a", "esc50", 0.9), record("a", "esc50", 0.8)
    second = replace(second, task={**second.task, "name": "evar:esc50"})
    values = found([first, second], like="m2dx-2024:III", models=("a",))
    assert values["a", "esc50"]["value"] == pytest.approx(90)
    assert values["a (evar:esc50)", "esc50"]["value"] == pytest.approx(80)


def test_weights_or_settings_that_differ_between_tasks_are_never_averaged():
    values = found([record("a", "us8k", 0.8, digest="1" * 16), record("a", "esc50", 0.7, digest="2" * 16)])
    assert {model for model, _ in values} == {"a (weights=11111111)", "a (weights=22222222)"}
    assert not any("average" in task for _, task in values)
    values = found([record("a", "us8k", 0.8, train_fraction=0.1), record("a", "esc50", 0.7, train_fraction=1.0)])
    assert {model for model, _ in values} == {"a (train_fraction=0.1)", "a"}


def test_a_setting_that_is_not_the_default_is_named_even_where_it_is_the_only_one():
    assert variants([record("a", "us8k", 0.8, train_fraction=0.1)]) == ["train_fraction=0.1"]
    assert variants([record("a", "us8k", 0.8, learning_rate=1e-3, train_fraction=1.0)]) == ["learning_rate=0.001"]
    assert variants([record("a", "us8k", 0.8, protocol="knn", probe="knn")]) == [""]


def test_models_trained_on_different_shares_of_the_clips_are_not_ranked_against_each_other():
    shares = [("a", 0.8, 1.0), ("b", 0.7, 1.0), ("a", 0.6, 0.1), ("b", 0.65, 0.1)]
    values = found([record(model, "us8k", mean, train_fraction=share) for model, mean, share in shares])
    ranks = {model: cell["rank"] for (model, _), cell in values.items()}
    assert ranks == {"a": 1, "b": 2, "a (train_fraction=0.1)": 2, "b (train_fraction=0.1)": 1}


def test_a_tasks_own_settings_and_other_tools_tell_nothing_apart():
    runs = [record("a", "us8k", 0.8, clip_seconds=4.0), record("a", "esc50", 0.7, clip_seconds=5.0)]
    tools = [record("a", "superb:pr", 0.1, protocol="superb", digest="3" * 16, config=1)]
    assert {model for model, _ in found([*runs, *tools])} == {"a"}


def test_one_task_with_other_clips_leaves_the_other_tasks_in_their_row():
    other = record("a", "esc50", 0.5)
    other = replace(other, task={**other.task, "fingerprint": "g"})
    values = found([record("a", "esc50", 0.9), other, record("a", "us8k", 0.8), record("a", "gtzan", 0.7)])
    assert values["a (clips=f)", "esc50"]["value"] == pytest.approx(90)
    assert values["a (clips=g)", "esc50"]["value"] == pytest.approx(50)
    assert values["a", "us8k"]["value"] == pytest.approx(80)
    assert values["a", "gtzan"]["value"] == pytest.approx(70)


def test_runs_that_differ_in_nothing_that_is_told_are_told_by_their_keys():
    runs = [record("a", "us8k", mean) for mean in (0.9, 0.5, 0.1)]
    others = [(), ("mAP",), ("mAP", "d_prime")]
    runs = [replace(r, task={**r.task, "other_metrics": o}) for r, o in zip(runs, others, strict=True)]
    assert sorted(cell["value"] for cell in found(runs).values()) == pytest.approx([10, 50, 90])


def test_beside_a_paper_disjoint_seeds_of_two_tasks_stay_apart():
    first, second = record("a", "esc50", 0.9), record("a", "esc50", 0.5)
    second = replace(second, scores=tuple(replace(s, seed=s.seed + 100) for s in second.scores))
    second = replace(second, task={**second.task, "name": "evar:esc50"})
    values = found([first, second], like="m2dx-2024:III", models=("a",))
    assert [values[model, "esc50"]["n"] for model in ("a", "a (evar:esc50)")] == [6, 6]


def test_a_label_takes_one_run_of_each_encoder():
    runs = [record("x", "us8k", 0.9), record("x", "us8k", 0.3, train_fraction=0.01), record("y", "us8k", 0.8)]
    with pytest.raises(UsageError, match="x, which ran us8k more than once"):
        found(runs, models=("P=x+y",))


def test_a_domain_that_is_not_known_moves_no_task():
    late = record("b", "us8k", 0.5)
    runs = [record("a", "esc50", 0.9), record("a", "us8k", 0.8), record("a", "gtzan", 0.7)]
    values = found([*runs, replace(late, task={**late.task, "domain": "other"})])
    assert ("a", "environment (2 tasks)") in values


@pytest.mark.parametrize(("metric", "best"), [("per", "b"), ("eer", "b"), ("wer", "b"), ("accuracy", "a")])
def test_metrics_that_count_errors_are_best_when_low(metric, best):
    runs = [record(name, "us8k", mean) for name, mean in (("a", 0.9), ("b", 0.2))]
    values = found([replace(run, task={**run.task, "metric": metric}) for run in runs])
    assert values[best, "us8k"]["rank"] == 1


def test_mus_and_env_are_the_papers_groups():
    assert published.GROUPS["env"] == ("esc50", "us8k")
    assert published.GROUPS["mus"] == ("gtzan", "nsynth", "surge")
    assert len(published.GROUPS["avg"]) == 9


def test_a_row_with_its_settings_in_its_name_can_be_chosen():
    runs = [record("a", "us8k", 0.9), record("a", "us8k", 0.3, epochs=10)]
    assert {model for model, _ in found(runs, models=("a (epochs=10)",))} == {"a (epochs=10)"}


@pytest.mark.parametrize("others", [{"digest": "1" * 16}, {"epochs": 10}, {"epochs": 10, "digest": "1" * 16}])
def test_a_baseline_of_several_rows_is_told_how_to_name_one(others):
    runs = [record("own.py:Own", "us8k", 0.8), record("own.py:Own", "us8k", 0.7, **others)]
    with pytest.raises(UsageError, match=r"fits 2 rows\. Name one: --baseline") as error:
        found(runs, baseline="own.py:Own*")
    for words in str(error.value).removesuffix(".").partition("Name one: ")[2].split(" or "):
        _, name = shlex.split(words)
        assert compare(runs, Selection(baseline=name)).baseline == name
