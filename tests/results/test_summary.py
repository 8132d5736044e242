"""Tables of runs say what they show."""

import csv
import io
import json
from dataclasses import replace

import pytest

from m2d_bench import runs
from m2d_bench.errors import UsageError
from m2d_bench.results import check_format, model_card, report, summary
from m2d_bench.runs import Score
from tests.test_runs import RUN, scored


def six_seeds():
    scores = [Score(seed=s, fold=f, score=0.7 + 0.01 * s + 0.02 * int(f), n_test=9) for s in range(6) for f in "12"]
    return replace(RUN, scores=tuple(scores))


def test_one_score_has_no_interval():
    assert "±" not in report([scored(42, "1", "2")]).splitlines()[-1]


def test_text_table_shows_percent_interval_and_n():
    line = report([six_seeds()]).splitlines()[-1]
    assert "75.50 ± 1.96" in line
    assert "6" in line.split()


def test_synthetic_tasks_are_named_so():
    run = replace(six_seeds(), task={**RUN.task, "synthetic": True})
    assert summary([run])[0]["task"] == "esc10 (synthetic)"


def test_every_format_carries_the_numbers():
    run = six_seeds()
    assert json.loads(report([run], "json"))[0]["mean"] == 75.5
    row = next(csv.DictReader(io.StringIO(report([run], "csv"))))
    assert (row["mean"], row["ci95"], row["n"]) == ("75.5", "1.96", "6")
    for style in ("md", "latex", "html"):
        assert "75.50" in report([run], style)
    assert report([run], "md").startswith("|")


def test_nothing_to_show_is_not_an_error():
    for style in ("text", "csv", "json"):
        assert report([RUN], style) in ("", "[]")


def test_unknown_format_is_refused():
    with pytest.raises(UsageError, match="Did you mean latex"):
        check_format("latx")


def test_a_model_card_tells_the_runs_of_its_encoder_alone(tmp_path, caplog):
    run = replace(six_seeds(), command="m2d-bench linear --tasks esc10")
    runs.add(run, tmp_path)
    runs.add(replace(run, encoder={"name": "other", "digest": "fedcba9876543210"}, command="of the other"), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    assert model_card(RUN.encoder["digest"], tmp_path) == {"scores": report([run], "md"), "commands": run.command}
    assert "broken.json" in caplog.text
    with pytest.raises(UsageError, match=r"none of its 2 run records is of the encoder 00ff.*m2d-bench linear"):
        model_card("00ff", tmp_path)
