"""What each class scores is shown as it is recorded."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
import scipy.stats

from m2d_bench import runs
from m2d_bench.cli import main
from m2d_bench.results.classes import class_report, class_summary
from tests.test_runs import RUN, scored

OWL, WREN = (0.2, 0.3, 0.25), (0.8, 0.7, 0.9)


def run_of_classes(task="birds"):
    """Three seeds on two classes, of which one has no negative clip."""
    scores = [
        replace(score, per_class={"owl": {"mAP": owl, "aucroc": 0.5, "d_prime": 0.0}, "wren": {"mAP": wren}, "": {}})
        for seed, owl, wren in zip((42, 43, 44), OWL, WREN, strict=True)
        for score in scored(seed, "test").scores
    ]
    return replace(RUN, task={**RUN.task, "name": task, "metric": "mAP", "n_folds": 1}, scores=tuple(scores))


def test_rows_are_the_intervals_over_seeds_and_the_best_class_comes_first():
    rows = class_summary([run_of_classes()])
    assert [(row["class"], row["metric"], row["unit"], row["n"]) for row in rows] == [
        ("wren", "mAP", "%", 3),
        ("owl", "mAP", "%", 3),
        ("owl", "aucroc", "%", 3),
        ("owl", "d_prime", "", 3),
    ]
    for row, scores in zip(rows, (WREN, OWL), strict=False):
        low, high = scipy.stats.t.interval(0.95, 2, loc=50, scale=100 * scipy.stats.sem(scores))
        assert row["mean"] == pytest.approx(100 * sum(scores) / 3, abs=0.01)
        assert row["ci95"] == pytest.approx((high - low) / 2, abs=0.01)


def test_runs_that_differ_in_a_setting_are_lines_of_their_own():
    run = run_of_classes()
    other = replace(run, settings={**run.settings, "train_fraction": 0.1})
    models = [row["model"] for row in class_summary([run, other])]
    assert models == 4 * [RUN.encoder["name"]] + 4 * [f"{RUN.encoder['name']} (train_fraction=0.1)"]
    assert len(class_report([run, other]).splitlines()) == 2 + 4


def test_every_format_carries_the_numbers():
    run = run_of_classes()
    assert json.loads(class_report([run], "json")) == class_summary([run])
    (first, *others) = csv.DictReader(io.StringIO(class_report([run], "csv")))
    assert (first["class"], first["mean"], first["ci95"], len(others)) == ("wren", "80.0", "24.84", 3)
    header, _, wren, owl = (re.split(r" {2,}", line.strip()) for line in class_report([run]).splitlines())
    assert header[3:] == ["class", "mAP (%)", "aucroc (%)", "d_prime", "n"]
    assert wren[3:] == ["wren", "80.00 ± 24.84", "3"]
    assert owl[3:] == ["owl", "25.00 ± 12.42", "50.00 ± 0.00", "0.00 ± 0.00", "3"]
    for style in ("md", "latex", "html"):
        assert "wren" in class_report([run], style)


def test_the_verb_shows_records_that_tell_classes_and_says_what_lacks_them(tmp_path, capsys):
    folder = ["--runs", str(tmp_path)]
    runs.add(scored(42, "1", "2"), tmp_path)
    assert main(["runs", "classes", *folder]) == 2
    assert "none of 1 records tells what each class scores" in capsys.readouterr().err
    runs.add(run_of_classes(), tmp_path)
    assert main(["runs", "classes", *folder]) == 0
    shown = capsys.readouterr().out
    assert "birds" in shown
    assert "esc10" not in shown
    assert main(["runs", "classes", *folder, "--tasks", "birds", "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("owl") == 3
    assert main(["runs", "classes", *folder, "--format", "svg"]) == 2
