"""Folders of records: merged without loss, exported in full, cleared of leftovers; the verbs that do it."""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from m2d_bench import runs
from m2d_bench.cli import main
from m2d_bench.results import folders
from m2d_bench.runs import Predictions
from tests.results.result_records import fixed, record
from tests.test_runs import RUN, scored


@pytest.fixture
def filled(tmp_path):
    for run in fixed():
        runs.add(run, tmp_path / "runs")
    return tmp_path / "runs"


def keep(run, folder, seed=42, fold="1"):
    arrays = {"clips": np.arange(2), "labels": np.arange(2), "scores": np.eye(2), "valid_scores": np.ones(1)}
    runs.save_predictions(run, folder, Predictions(seed=seed, fold=fold, classes=np.array(["a", "b"]), **arrays))


def test_merging_adds_what_is_missing_once(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    runs.add(scored(42, "1", "2"), here)
    runs.add(scored(42, "1", "2"), there)
    runs.add(scored(43, "1", "2"), there)
    runs.add(record("m2d_a", "us8k", 0.8), there)
    keep(RUN, there)
    before = {path: path.read_bytes() for path in there.rglob("*.json")}
    assert folders.merge([there], here) == (2 + 60, [])
    assert folders.merge([there, here], here) == (0, [])
    assert runs.load(RUN.path(here)).done(2) == {42, 43}
    assert len(runs.read(here)[0]) == 2
    assert len(runs.load_predictions(RUN.path(here))) == 1
    assert {path: path.read_bytes() for path in there.rglob("*.json")} == before


def test_other_scores_of_the_same_seed_stay_apart_and_are_named(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    runs.add(scored(42, "1", "2"), here)
    runs.add(scored(42, "1", "2", score=0.9), there)
    added, failures = folders.merge([there], here)
    assert added == 0
    assert "other scores than" in failures[0]
    assert "42/1, 42/2" in failures[0]
    assert {score.score for score in runs.load(RUN.path(here)).scores} == {0.5}


def add_some(arguments):
    folder, first = arguments
    for number in range(first, first + 12):
        runs.add(scored(number, "1", "2"), folder)
        runs.add(replace(scored(0, "1", "2"), settings={"epochs": number}), folder)


def test_eight_processes_that_write_at_once_lose_nothing(tmp_path):
    with ProcessPoolExecutor(8) as pool:
        list(pool.map(add_some, [(tmp_path, 100 * process) for process in range(8)]))
    found, failures = runs.read(tmp_path)
    seeds = {100 * process + number for process in range(8) for number in range(12)}
    assert failures == []
    assert found[RUN.path(tmp_path)].done(2) == seeds
    assert {run.settings["epochs"] for run in found.values()} == {*seeds, 200}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_every_raw_score_is_exported(filled, tmp_path, capsys, suffix):
    path = tmp_path / f"scores{suffix}"
    assert main(["runs", "export", "-o", str(path), "--runs", str(filled)]) == 0
    frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    expected = [score.score for run in runs.read(filled)[0].values() for score in run.scores]
    assert frame["score"].tolist() == pytest.approx(expected)
    assert json.loads(frame["settings"][0]) == {"epochs": 200}
    assert f"{len(expected)} scores of 8 records" in capsys.readouterr().out


def aged(path, content=b"{"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - 7200,) * 2)
    return path


def test_leftovers_are_found_by_name_and_age_and_all_else_stays(filled):
    old = aged(filled / "x" / ".linear-1.json.77.tmp")
    fresh = filled / ".fresh.json.77.tmp"
    fresh.write_text("{")
    orphan = aged(RUN.path(filled).with_suffix("") / "42-1.npz")  # there is no such record
    keep(replace(RUN, settings={"epochs": 1}), filled)  # nor of this one, yet
    written = runs.read(filled)[0]
    path, run = next(iter(written.items()))
    keep(run, filled)
    strangers = [aged(filled / "emb.npz"), aged(filled / "data" / "x.npz"), aged(filled / ".git" / "a.tmp")]
    strangers += [aged(path.with_suffix(".lock")), aged(filled / "uv.lock")]
    assert folders.leftovers(filled, 1.0) == [old, orphan]
    assert main(["runs", "gc", "--dry-run", "--runs", str(filled)]) == 0
    assert old.exists()
    assert main(["runs", "gc", "--runs", str(filled)]) == 0
    assert not old.exists()
    assert not orphan.parent.exists()
    assert all(each.exists() for each in (fresh, *strangers))
    assert runs.read(filled)[0] == written
    assert len(runs.load_predictions(path)) == 1
    assert len(runs.load_predictions(replace(RUN, settings={"epochs": 1}).path(filled))) == 1


def test_predictions_of_scores_that_were_refused_are_not_taken(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    runs.add(scored(42, "1", "2"), here)
    runs.add(scored(42, "1", "2", score=0.9), there)
    runs.add(scored(43, "1", "2", score=0.9), there)
    for seed in (42, 43):
        keep(RUN, there, seed)
    folders.merge([there], here)
    assert [each.seed for each in runs.load_predictions(RUN.path(here))] == [43]


def test_a_broken_record_of_the_target_does_not_stop_the_others(filled, tmp_path):
    broken = fixed()[0].path(tmp_path / "here")
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    added, failures = folders.merge([filled], tmp_path / "here")
    assert added == sum(len(run.scores) for run in fixed()[1:])
    assert len(failures) == 1
    assert "not a run record" in failures[0]
    assert broken.read_text() == "{"


def test_runs_are_listed_and_shown(filled, capsys):
    (filled / "broken.json").write_text("[]")
    assert main(["runs", "list", "--runs", str(filled)]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2 + 8
    assert "broken.json: not a run record" in printed.err
    (filled / "broken.json").unlink()
    key = fixed()[0].key
    assert main(["runs", "show", key[:6], "--runs", str(filled)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["encoder"]["name"] == "m2d_a"
    assert len(shown["scores"]) == 30
    assert main(["runs", "show", shown["path"]]) == 0
    assert main(["runs", "show", "zz", "--runs", str(filled)]) == 2
    assert "key of 0 records" in capsys.readouterr().err


def test_the_table_is_printed_or_written(filled, tmp_path, capsys):
    assert main(["table", "--runs", str(filled), "--tasks", "us8k,esc50", "--baseline", "m2d_a"]) == 0
    printed = capsys.readouterr().out
    assert "80.00 ± 1.96" in printed
    assert "average (2 tasks)" in printed
    path = tmp_path / "deep" / "table.md"
    assert main(["table", "--runs", str(filled), "--like", "m2dx-2024:III", "--format", "md", "-o", str(path)]) == 0
    assert "| m2d_a" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["table.md"]


def test_published_tables_need_no_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", "--like", "m2d-2023:4"]) == 0
    assert main(["table", "--list"]) == 0
    assert "m2dx-2024:XIII" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table", "--runs", "nowhere"], "nowhere: no such folder of run records"),
        (["table", "--runs", "."], "no run records in it"),
        (["table", "--like", "m2dx-2024:3"], "Did you mean m2dx-2024:"),
        (["table", "--format", "latx"], "Did you mean latex"),
        (["runs", "export", "-o", "x.txt"], "Allowed: .csv, .parquet"),
        (["runs", "merge"], "FOLDER"),
        (["runs", "merge", "nowhere"], "nowhere: no such folder"),
        (["runs", "gc", "--runs", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert says in capsys.readouterr().err
