"""The table and the curve of layers × poolings, and how far the seeds agree on it."""

import csv
import io
import re
from dataclasses import replace

import pytest

from m2d_bench import verbs
from m2d_bench.cli import main
from m2d_bench.errors import UsageError
from m2d_bench.results import compare, layer_report, render
from m2d_bench.results.layers import by_layer
from m2d_bench.results.plots import curves, figures
from m2d_bench.results.plots.curves import curve, draw_layers
from m2d_bench.runs import Score, TasksFailed
from tests.results.result_records import record


def layered(scores, metric="accuracy", task="esc50", pooling="mean", n_folds=1):
    """A record a layer, of these scores a seed."""
    runs = []
    for layer, of_seeds in enumerate(scores, 1):
        run = record("m2d", task, 0.5, layer=layer, pooling=pooling)
        marks = [Score(seed=42 + i, fold="1", score=score, n_test=100) for i, score in enumerate(of_seeds)]
        facts = {**run.task, "n_folds": n_folds, "metric": metric, "other_metrics": []}
        runs.append(replace(run, task=facts, scores=tuple(marks)))
    return runs


RISING = [(0.1, 0.12, 0.11), (0.5, 0.52, 0.51), (0.9, 0.92, 0.91)]


def test_rows_are_layers_and_columns_poolings_and_the_best_of_all_is_marked():
    runs = layered(RISING) + layered([(0.2, 0.2, 0.21), (0.3, 0.31, 0.3), (0.95, 0.96, 0.97)], pooling="max")
    text = layer_report(runs)
    lines = [line for line in text.splitlines() if line.startswith("layer ")]
    assert [line.split()[1] for line in lines] == ["1", "2", "3"]
    assert "96.00 ± 2.48 ¹" in lines[2]
    assert "91.00 ± 2.48 ²" in lines[2]
    assert text.count("¹") == text.count("²") == 2  # with the legend
    assert "esc50 mean" in text
    assert "esc50 max" in text
    rows = list(csv.DictReader(io.StringIO(layer_report(runs, "csv"))))
    assert {(row["section"], row["model"], row["task"]) for row in rows} >= {("m2d", "layer 2", "esc50 max")}


def test_seeds_that_rank_alike_agree_wholly_and_others_do_not():
    assert "layer 3, mean is the best on average and in 3 of 3 seeds" in by_layer(layered(RISING)).title
    assert "1.00 ± 0.00" in by_layer(layered(RISING)).title
    mixed = by_layer(layered([(0.9, 0.1, 0.5), (0.5, 0.9, 0.1), (0.1, 0.5, 0.95)])).title
    assert "in 1 of 3 seeds" in mixed
    assert "others' -" in mixed
    errors = by_layer(layered(RISING, metric="wer")).title
    assert "layer 1, mean is the best on average and in 3 of 3 seeds" in errors


@pytest.mark.parametrize(
    ("scores", "first"),
    [
        (
            [(0.1, 0.2), (0.5, 0.6), (0.5, 0.6)],
            "layer 2, mean and layer 3, mean tie as the best on average, one of them",
        ),
        ([(0.1, 0.3), (0.3, 0.1)], "layer 1, mean and layer 2, mean tie"),
        ([(0.5, 0.5)] * 5, "layer 1, mean and layer 2, mean and layer 3, mean and 2 more tie"),
    ],
)
def test_layers_that_tie_for_the_best_are_all_named(scores, first):
    title = by_layer(layered(scores)).title
    assert first in title
    assert "in 2 of 2 seeds" in title


@pytest.mark.parametrize(
    ("scores", "title"),
    [
        ([(0.1,), (0.2,)], ""),
        ([(0.1, 0.2)], ""),
        ([(0.1, 0.2), (0.3, 0.4)], "others' 1.00."),
        ([(0.5, 0.5, 0.5), (0.5, 0.5, 0.5)], "others' 0.00 ± 0.00."),
    ],
)
def test_agreement_is_told_only_where_there_is_one_to_tell(scores, title):
    found = by_layer(layered(scores)).title
    assert found.endswith(title)
    assert bool(found) == bool(title)


def test_each_task_has_its_columns_and_its_best():
    runs = layered(RISING) + layered(RISING[::-1], task="us8k")
    comparison = by_layer(runs)
    best = {(row, column.task) for (row, column), mark in comparison.marks.items() if mark.rank == 1}
    assert best == {(2, "esc50 mean"), (0, "us8k mean")}
    assert comparison.title.count("Kendall") == 2
    assert render(comparison, "latex").count("textbf") == 2 + 1  # and the legend


def test_a_layer_without_a_finished_seed_leaves_its_cell_empty():
    unfinished = layered(RISING, n_folds=2)[2]
    rows = layer_report([*layered(RISING)[:2], unfinished, *layered(RISING, pooling="max")], "csv")
    found = [(row["model"], row["task"]) for row in csv.DictReader(io.StringIO(rows))]
    assert len(found) == 5
    assert ("layer 3", "esc50 mean") not in found


def test_a_table_of_all_runs_tells_layers_and_encodings_apart_and_leaves_the_default_its_name():
    bare = record("m2d", "esc50", 0.5)
    one_pass = replace(bare, settings={**bare.settings, "encoding": "one_pass"})
    one_pass = replace(one_pass, encoder={**bare.encoder, "digest": "another"})
    mixed = record("m2d", "esc50", 0.5, layer="weighted", pooling="mean", mixing_learning_rate=3e-3)
    other = record("m2d", "esc50", 0.5, layer="weighted", pooling="max", mixing_learning_rate=1e-2)
    names = [row.model for row in compare([bare, one_pass, mixed, other, *layered(RISING)[:1]]).rows]
    assert sorted(names) == [
        "m2d",
        "m2d (encoding=one_pass)",
        "m2d (layer=1, pooling=mean)",
        "m2d (layer=weighted, pooling=max, mixing_learning_rate=0.01)",
        "m2d (layer=weighted, pooling=mean)",
    ]


def test_the_curve_over_layers_has_a_line_a_pooling_and_no_logarithmic_axis():
    many = [(0.1 + n / 100, 0.12, 0.11) for n in range(24)]
    figure = curve(layered(many) + layered(many, pooling="max"), "settings.layer")
    (panel,) = figure.axes
    assert panel.get_xscale() == "linear"
    assert panel.get_xlabel() == "layer"
    assert len(panel.get_legend_handles_labels()[1]) == 2


@pytest.mark.parametrize("failed", [False, True])
def test_the_verb_draws_what_it_tabulates_and_says_where(tmp_path, monkeypatch, capsys, failed):
    found = layered(RISING) + layered(RISING, pooling="max")

    def linear(model, task_names, settings, baseline):
        if failed:
            raise TasksFailed({"us8k": UsageError("no data")}, found)
        return found

    monkeypatch.setattr(verbs.evaluation, "linear", linear)
    words = ["linear", "--layer", "all", "--pooling", "mean,max", "--runs", str(tmp_path), "--format", "csv"]
    for _ in range(2):
        assert main(words) == int(failed)
        out, err = capsys.readouterr()
        assert out == layer_report(found, "csv") + "\n"
        assert err.splitlines()[0] == f"{tmp_path / 'layers-m2d.png'}: scores over layers"
        assert [path.name for path in tmp_path.iterdir()] == ["layers-m2d.png"]


def test_each_task_has_a_panel_in_its_metric_and_each_pooling_a_line(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.append((figure, path.name)))
    errors = layered(RISING, "wer", "superb:pr")
    draw_layers([replace(run, encoder={**run.encoder, "name": "hf:a/b"}) for run in layered(RISING) + errors], tmp_path)
    draw_layers(layered(RISING) + layered(RISING, pooling="max") + errors, tmp_path)
    (one, name), (two, _) = drawn
    assert name == "layers-hf_a_b.png"
    assert [panel.get_title(loc="left") for panel in two.axes] == ["esc50", "superb:pr"]
    assert [panel.get_ylabel() for panel in two.axes] == ["accuracy (%)", "wer (%), lower is better"]
    assert [len(panel.containers) for panel in (*one.axes, *two.axes)] == [1, 1, 2, 1]
    assert two.axes[1].lines[0].get_ydata() == pytest.approx([11, 51, 91])


def test_one_layer_is_not_drawn(tmp_path, capsys):
    unfinished = layered(RISING, n_folds=2)[1:]
    for runs in ([], layered(RISING[:1]) + layered(RISING[:1], pooling="max"), [*layered(RISING[:1]), *unfinished]):
        draw_layers(runs, tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", ["no matplotlib", "read-only", "a folder", "too long"])
def test_a_figure_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, caplog, fault):
    runs = layered(RISING)
    if fault == "no matplotlib":
        monkeypatch.setattr(figures, "find_spec", lambda name: None)
        reason = r"pip install 'm2d-bench\[plots\]'"
    elif fault == "read-only":
        monkeypatch.setattr("os.access", lambda path, mode: False)
        reason = "cannot be written to"
    elif fault == "a folder":
        (tmp_path / "layers-m2d.png").mkdir()
        reason = "Is a directory"
    else:
        runs = [replace(run, encoder={**run.encoder, "name": 300 * "x"}) for run in runs]
        reason = "File name too long"
    draw_layers(runs, tmp_path)
    (message,) = caplog.messages
    assert re.search(f"^Scores over layers are not drawn: .*{reason}", message)
