"""Experiments' folders as records: what is told apart, and what is stated; the logs are written by hand."""

import json

import pytest
import yaml

from m2d_bench.cli import main
from m2d_bench.errors import DataError
from m2d_bench.superb_upstream import experiments, launcher

VERSIONS = {"versions": {"s3prl": "0.4.18", "torchaudio": "2.11.0"}, "device": "cpu"}


def log(*lines, data="d1", mode="train", seconds=None):
    """What a run prints."""
    marks = [mode, "encoder e1 m2d_a", f"data {data}", f"environment {json.dumps(VERSIONS)}"]
    after = [] if seconds is None else [f"seconds {seconds}"]
    return [*(f"[m2d-bench] {mark}" for mark in marks), *lines, *(f"[m2d-bench] {mark}" for mark in after)]


def evaluated(score, data="d1"):
    return log(f"test acc: {score}", data=data, mode="evaluate test")


TRAINED = log("dev acc: 0.5", "test acc: 0.4", "dev acc: 0.6", "test acc: 0.3", seconds=60.5)


def experiment(folder, lines, task="speech_commands", seed=1, name="stdout.log", fold=None, **optimizer):
    """A folder as s3prl leaves it."""
    folder.mkdir()
    config = launcher.config_of(task, folder)
    config["optimizer"] |= optimizer
    arguments = {"downstream": task, "seed": seed, "device": "cpu", "upstream": "m2d", "upstream_ckpt": "m2d_a,ks"}
    for kind, values in (("args", arguments | {"downstream_variant": fold}), ("config", config)):
        (folder / f"{kind}_2026-01-01-00-00-00.yaml").write_text(yaml.safe_dump(values))
    (folder / name).write_text("\n".join(lines))
    return folder


def test_a_record_states_what_was_used(tmp_path):
    run = experiments.read(experiment(tmp_path / "a", [*TRAINED, *evaluated(0.35)]))
    (score,) = run.scores
    assert (score.score, score.valid_score, score.seconds) == (0.35, 0.6, 60.5)
    assert run.environment == VERSIONS
    assert run.encoder["digest"] == "e1"
    assert run.task["fingerprint"] == "d1"
    assert "num_workers" not in str(run.settings)


def test_time_adds_up_over_what_goes_on_and_starts_again_with_training_anew(tmp_path):
    resumed = log("dev acc: 0.7", "test acc: 0.2", mode="resume", seconds=30)
    run = experiments.read(experiment(tmp_path / "a", [*TRAINED, *evaluated(0.35), *resumed]))
    assert (run.scores[0].seconds, run.scores[0].score) == (90.5, 0.2)
    run = experiments.read(experiment(tmp_path / "b", [*TRAINED, *resumed, *TRAINED]))
    assert (run.scores[0].seconds, run.scores[0].score) == (60.5, 0.3)


def test_an_evaluation_beside_a_training_that_goes_on_is_told_from_it(tmp_path):
    begun, after = TRAINED[:6], TRAINED[6:]
    beside = [*evaluated(0.35)[:-1], "dev acc: 0.55", evaluated(0.35)[-1], "[m2d-bench] evaluated"]
    run = experiments.read(experiment(tmp_path / "a", [*begun, *beside, *after]))
    assert (run.scores[0].score, run.scores[0].valid_score, run.scores[0].seconds) == (0.35, 0.6, 60.5)


def test_a_line_that_a_killed_run_broke_off_is_passed_over(tmp_path):
    cut = [line[:30] if "environment" in line else line for line in TRAINED]
    run = experiments.read(experiment(tmp_path / "a", [*cut[:-1], *log(mode="resume", seconds=2), cut[-1][:20]]))
    assert (run.scores[0].score, run.scores[0].seconds, run.environment) == (0.3, 2, VERSIONS)


@pytest.mark.parametrize(
    ("lines", "fingerprint"),
    [
        ([*TRAINED, *evaluated(0.35, data="d2")], "d1-d2"),
        ([*TRAINED, *log("dev acc: 0.7", "test acc: 0.2", data="d3", mode="resume")], "d1-d3"),
        ([*TRAINED, *log("dev acc: 0.9", data="d2", mode="evaluate dev")], "d1"),
        ([*evaluated(0.1, data="d0"), *TRAINED], "d1"),
    ],
)
def test_data_is_that_of_training_and_test(lines, fingerprint, tmp_path):
    assert experiments.read(experiment(tmp_path / "a", lines)).task["fingerprint"] == fingerprint


def imported(tmp_path, capsys, *folders, style="json"):
    assert main(["superb", "import", *map(str, folders), "--runs", str(tmp_path / "runs"), "--format", style]) == 0
    return capsys.readouterr().out


def test_seeds_join_and_other_data_settings_and_versions_do_not(tmp_path, capsys, monkeypatch):
    folders = [
        experiment(tmp_path / "a", TRAINED),
        experiment(tmp_path / "b", TRAINED, seed=2),
        experiment(tmp_path / "c", [line.replace("d1", "d2") for line in TRAINED], seed=3),
        experiment(tmp_path / "d", TRAINED, seed=4, lr=1e-2),
    ]
    rows = json.loads(imported(tmp_path, capsys, *folders))
    assert sorted(row["n"] for row in rows) == [1, 1, 2]
    assert len({row["model"] for row in rows}) == 3
    monkeypatch.setitem(experiments.VERSIONS, "ks", 2)
    imported(tmp_path, capsys, experiment(tmp_path / "e", TRAINED, seed=5))
    assert main(["table", "--runs", str(tmp_path / "runs"), "--format", "csv"]) == 0
    shown = capsys.readouterr().out
    assert all(f"clips={data}" in shown for data in ("d1", "d2"))
    assert "optimizer.lr=0.01" in shown
    assert "task version=2" in shown


def test_without_fingerprints_data_is_told_apart_by_where_it_lies(tmp_path):
    old = [line for line in TRAINED if " data " not in line and " environment " not in line]
    first = experiments.read(experiment(tmp_path / "a", old))
    assert first.task["fingerprint"].startswith("places-")
    assert "torch" in first.environment["versions"]
    assert experiments.read(experiment(tmp_path / "b", old)).key != first.key


@pytest.mark.parametrize(
    ("left_out", "name", "version"), [([], "stdout.log", 2), ([" data "], "stdout.log", 1), ([], "log.log", 2)]
)
def test_phonemes_of_before_are_another_version_of_the_task(left_out, name, version, tmp_path):
    lines = log("dev per: 0.5", mode="train") + log("test per: 0.4", mode="evaluate test")
    lines = [line for line in lines if not any(word in line for word in left_out)]
    lines += ["New best on dev at step 2: 0.5", "test at step 2: 0.4"]  # s3prl's own log
    run = experiments.read(experiment(tmp_path / "a", lines, "ctc", name=name))
    assert run.task["version"] == version


def test_a_training_that_another_experiment_began_is_refused(tmp_path):
    folder = experiment(tmp_path / "a", TRAINED)
    (arguments,) = folder.glob("args_*.yaml")
    values = yaml.safe_load(arguments.read_text())
    arguments.write_text(yaml.safe_dump({**values, "init_ckpt": "other/states-4.ckpt"}))
    with pytest.raises(DataError, match=r"run with -i other/states-4\.ckpt.*with -e instead"):
        experiments.read(folder)
    arguments.write_text(yaml.safe_dump({**values, "init_ckpt": "a/states-4.ckpt", "past_exp": "a"}))
    assert experiments.read(folder).scores[0].score == 0.3


def test_scores_of_s3prls_own_log_are_read(tmp_path):
    lines = [
        *("dev at step 2: 0.5", "New best on dev at step 2: 0.5", "test at step 2: 0.4"),
        *("dev at step 4: 0.4", "test at step 4: 0.9"),
    ]
    run = experiments.read(experiment(tmp_path / "a", lines, name="log.log"))
    assert (run.scores[0].valid_score, run.scores[0].score) == (0.5, 0.4)
    run = experiments.read(experiment(tmp_path / "b", [*lines, "test at step 0: 0.7"], name="log.log"))
    assert run.scores[0].score == 0.7
    with pytest.raises(DataError, match="no test score yet"):
        experiments.read(experiment(tmp_path / "c", [], name="log.log"))


def test_folds_are_called_incomplete_when_all_folders_are_read(tmp_path, capsys, caplog):
    folders = [
        experiment(tmp_path / f"{seed}{fold}", TRAINED, "emotion", seed, fold=f"fold{fold}")
        for seed, folds in ((1, 5), (2, 4))
        for fold in range(1, folds + 1)
    ]
    caplog.clear()
    imported(tmp_path, capsys, *folders)
    assert "seed 2: 4 of 5 folds" in caplog.text
    assert "seed 1" not in caplog.text
    caplog.clear()
    fifth = experiment(tmp_path / "25", TRAINED, "emotion", 2, fold="fold5")
    assert json.loads(imported(tmp_path, capsys, fifth))[0]["n"] == 2
    assert "folds" not in caplog.text


def test_a_table_shows_them_beside_the_published(tmp_path, capsys):
    imported(tmp_path, capsys, experiment(tmp_path / "a", TRAINED), experiment(tmp_path / "b", TRAINED, seed=2))
    assert main(["table", "--runs", str(tmp_path / "runs"), "--like", "m2dx-2024:VII", "--tasks", "ks"]) == 0
    shown = capsys.readouterr().out
    assert "96.85" in shown
    assert "30.00 ± 0.00" in shown
