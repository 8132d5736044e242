"""EVAR's files in and out: metadata as tasks, tasks as metadata, scores as records."""

import csv

import numpy as np
import pytest
import soundfile

from m2d_bench import runs, tasks
from m2d_bench.cli import main
from m2d_bench.errors import DataError, UsageError
from m2d_bench.evar_adapters import scores
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset
from tests.tasks.test_own import SEGMENTS, segments

FOLDS = [("a/1.wav", "dog", "1"), ("a/2.wav", "cat", "1"), ("b/3.wav", "dog", "2"), ("b/4.wav", "cat", "2")]
SPLITS = [("1.wav", "dog", "train"), ("2.wav", "cat", "train"), ("3.wav", "dog", "valid"), ("4.wav", "cat", "test")]


def write(root, rows, column="fold", name="pets", rates=(16000,), seconds=1.0):
    """A metadata file in a clone's place, and its clips."""
    path = root / "evar" / "metadata" / f"{name}.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", column), *rows])
    for rate in rates:
        for number, (file_name, _, _) in enumerate(rows):
            clip = root / "work" / f"{rate // 1000}k" / name / file_name
            clip.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(clip, np.zeros(round(rate * seconds) + 100 * number), rate)
    return path


def test_folds_and_labels_of_a_metadata_file_are_a_task(tmp_path):
    task = tasks.get(f"evar:{write(tmp_path, FOLDS)}")
    assert (task.name, task.metric, task.folds.count, task.multilabel) == ("evar:pets", "accuracy", 2, False)
    assert task.clip_seconds == pytest.approx(1 + 150 / 16000)
    found = dataset.load(task, Storage())
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.splits.tolist() == ["1", "1", "2", "2"]
    assert found.waveform(0, 16000).shape == (round(16000 * task.clip_seconds),)


def test_official_splits_and_several_labels(tmp_path):
    rows = [(name, "dog,cat" if name == "1.wav" else label, split) for name, label, split in SPLITS]
    task = tasks.get(f"evar:{write(tmp_path, rows, 'split', 'fsd50k')}")
    assert (task.metric, task.multilabel, task.clip_seconds) == ("mAP", True, 7.6358)
    assert dataset.load(task, Storage()).labels.tolist() == [[1, 1], [1, 0], [0, 1], [1, 0]]


DEFINITIONS = '''"""Downstream task definitions."""
from evar.common import WORK

_defs = {{
    'pets': {}, 'as': [1, 10.0, 'sigmoid', 'as', True],
}}
_fs_table = {{16000: '16k', 'pets': [1, 9.0, None]}}


def get_defs(cfg, task):
    folds, unit_sec, folder, balanced = _defs[task]
'''


def declare(path, value, text=DEFINITIONS):
    """A clone's ds_tasks.py for a metadata file, with the value of the task pets."""
    (path.parent.parent / "ds_tasks.py").write_text(text.format(value))


@pytest.mark.parametrize(
    ("value", "seconds", "metric"),
    [
        ("[2, 0.8, 'animals', False]", 0.8, "accuracy"),  # of today
        ("[2, 1, 'softmax', 'animals', False]", 1.0, "accuracy"),  # of older clones
        ("(2, 7.6358, 'sigmoid', 'animals')", 7.6358, "mAP"),
    ],
)
def test_unit_duration_folder_and_metric_are_the_clones(tmp_path, caplog, value, seconds, metric):
    path = write(tmp_path, FOLDS)
    declare(path, value)
    (tmp_path / "work/16k/pets").rename(tmp_path / "work/16k/animals")
    task = tasks.get(f"evar:{path}")
    assert (task.clip_seconds, task.clip_seconds_source) == (seconds, "evar/ds_tasks.py")
    assert (task.metric, task.multilabel) == (metric, metric == "mAP")
    found = dataset.load(task, Storage())
    assert found.root == tmp_path / "work/16k/animals"
    assert found.waveform(3, 16000).shape == (round(16000 * seconds),)
    assert "ds_tasks" not in caplog.text
    (tmp_path / "work").rename(tmp_path / "gone")
    with pytest.raises(DataError, match=r"EVAR keeps them in .*work/16k/animals, at"):
        dataset.load(task, Storage())


HOSTILE = "[1, open('RAN', 'w').write('x'), None, False]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("_defs = {'others': [1, 1.0, None]}", "does not list 'pets'"),
        ("_defs = dict(pets=[1, 1.0, None])", "does not list 'pets'"),
        (f"_defs = {{'pets': {HOSTILE}}}", "open('RAN', 'w').write('x'), None, False] is not [folds, unit seconds,"),
        (f"open('RAN', 'w').write('x')\n_defs = {{'pets': {HOSTILE}, **{{}}}}", "in plain values"),
        ("_defs = {'pets': [1, UNIT, None]}", "'pets': [1, UNIT, None] is not [folds, unit seconds,"),
        ("_defs = {'pets': [1, -1.0, None]}", "'pets': [1, -1.0, None] is not"),
        ("_defs = {'pets': [1, 1e999, None]}", "inf"),
        ("_defs = {'pets': 'ten seconds'}", "'ten seconds' is not"),
        ("_defs = {'pets': {[]: 1}}", "unhashable"),
        ("_defs = {'pets': [1, 1.0, None]", "was never closed (ds_tasks.py, line 1)"),
        ("\0", "null bytes"),
        (f"_defs = {{'pets': {'-' * 100000}1}}", "nested too deeply"),
        (f"_defs = {{'pets': [1, {'1+' * 100000}1]}}", "nested too deeply"),
    ],
)
def test_a_clone_that_says_nothing_of_a_task_is_named_and_nothing_of_it_runs(tmp_path, monkeypatch, caplog, text, says):
    path = write(tmp_path, FOLDS)
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "evar" / "ds_tasks.py").write_text(text)
    task = tasks.get(f"evar:{path}")
    assert task.clip_seconds == pytest.approx(1 + 150 / 16000)
    assert task.clip_seconds_source == "mean of the clips"
    (message,) = caplog.messages
    assert says in message
    assert message.endswith("Clips of pets are cut or padded to 1.009 s (mean of the clips), or to --clip-seconds.")
    assert "\n" not in message
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(("name", "seconds", "ours"), [("esc50", 5.0, "esc50"), ("as", 10.0, "as2m")])
def test_papers_tasks_keep_their_unit_duration_without_a_clone(tmp_path, caplog, name, seconds, ours):
    task = tasks.get(f"evar:{write(tmp_path, FOLDS, name=name)}")
    assert (task.clip_seconds, task.clip_seconds_source) == (seconds, f"task {ours}")
    assert f"are cut or padded to {seconds:g} s (task {ours})" in caplog.text


@pytest.mark.parametrize(
    ("words", "seconds", "source"), [([], 0.8, "evar/ds_tasks.py"), (["--clip-seconds", "0.5"], 0.5, "--clip-seconds")]
)
def test_the_record_says_where_the_unit_duration_came_from(tmp_path, capsys, words, seconds, source):
    path = write(tmp_path, [(f"{i}.wav", ("dog", "cat")[i % 2], str(i // 4 % 3)) for i in range(12)])
    declare(path, "[3, 0.8, None, False]")
    command = ["linear", "--tasks", f"evar:{path}", "--model", "logmel", "--seeds", "1", "--epochs", "1"]
    assert main([*command, *words, "--runs", str(tmp_path / "runs")]) == 0
    (record,) = map(runs.load, (tmp_path / "runs").rglob("*.json"))
    assert (record.settings["clip_seconds"], record.task["clip_seconds_source"]) == (seconds, source)
    assert main(["tasks", "check", f"evar:{path}", *words]) in (0, 1)
    assert f"cut or padded to {seconds} s ({source})" in capsys.readouterr().out


def test_the_copy_at_the_encoders_rate_is_taken(tmp_path, caplog):
    path = write(tmp_path, FOLDS, rates=(16000, 32000))
    declare(path, "[2, 1.0, None, False]")
    task = tasks.get(f"evar:{path}")
    assert dataset.load(task, Storage(), 32000).root.parts[-2] == "32k"
    assert dataset.load(task, Storage(), 16000).root.parts[-2] == "16k"
    assert not caplog.text


def test_linear_evaluates_a_metadata_file(tmp_path, capsys):
    rows = [(f"{i}.wav", ("dog", "cat")[i % 2], str(i // 4 % 3)) for i in range(24)]
    path = write(tmp_path, rows, name="esc50")
    words = ["linear", "--tasks", f"evar:{path}", "--model", "random:m2d_vit_tiny-80x208p16x16", "--seeds", "2"]
    assert main([*words, "--epochs", "2", "--runs", str(tmp_path / "runs")]) == 0
    assert "evar:esc50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("header", "rows", "error", "says"),
    [
        (("clip", "label", "fold"), FOLDS, DataError, r"no column file_name \(or .*; it has clip, label, fold"),
        (("file_name", "label", "set"), FOLDS, DataError, "neither a column split nor a column fold"),
        (("file_name", "label", "split"), FOLDS, DataError, r"split holds \['1', '2'\]; it takes train and test"),
    ],
)
def test_a_file_that_is_no_metadata_is_refused(tmp_path, header, rows, error, says):
    path = write(tmp_path, FOLDS)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with pytest.raises(error, match=says):
        dataset.load(tasks.get(f"evar:{path}"), Storage())


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="no such file; name a metadata file of EVAR"):
        tasks.get(f"evar:{tmp_path / 'none.csv'}")
    path = write(tmp_path, FOLDS, rates=())
    with pytest.raises(DataError, match=r"no sound files. EVAR keeps them in .*work/16k/pets"):
        tasks.get(f"evar:{path}")


def test_what_is_exported_is_read_back_the_same(tones, tmp_path, monkeypatch):
    monkeypatch.setenv("M2D_BENCH_DATA", str(tones))
    assert main(["evar", "export", "esc10", "-o", str(tmp_path)]) == 0
    task = tasks.get(f"evar:{tmp_path / 'evar/metadata/esc10.csv'}")
    ours, theirs = (dataset.load(each, Storage(data=tones)) for each in (tasks.get("esc10"), task))
    assert theirs.classes == ours.classes
    assert theirs.labels.tolist() == ours.labels.tolist()
    assert theirs.splits.tolist() == ours.splits.tolist()
    assert theirs.waveform(3, 16000)[:8000] == pytest.approx(ours.waveform(3, 16000)[:8000], abs=2e-4)


def test_an_export_goes_where_the_clone_will_look(tmp_path):
    (tmp_path / "evar").mkdir()
    (tmp_path / "evar/ds_tasks.py").write_text("_defs = {'own_calls': [1, 0.4, 'calls', False]}")
    assert main(["evar", "export", str(segments(tmp_path, SEGMENTS)), "-o", str(tmp_path)]) == 0
    found = dataset.load(tasks.get(f"evar:{tmp_path / 'evar/metadata/own_calls.csv'}"), Storage())
    assert (found.root, found.task.clip_seconds) == (tmp_path / "work/16k/calls", 0.4)


def test_segments_are_exported_as_clips_of_their_own(tmp_path):
    path = segments(tmp_path, SEGMENTS)
    assert main(["evar", "export", str(path), "-o", str(tmp_path / "clone")]) == 0
    theirs = dataset.load(tasks.get(f"evar:{tmp_path / 'clone/evar/metadata/own_calls.csv'}"), Storage())
    assert theirs.files == ("a_0-0.25.wav", "a_0.5-0.75.wav", "b.wav", "b_0.75-inf.wav")
    assert theirs.seconds.tolist() == [0.25, 0.25, 1.0, 0.25]
    assert theirs.waveform(1, 8000)[1000] == pytest.approx(0.5 + 1 / 8, abs=0.01)


def config(**changes):
    return {
        "audio_repr": "ar_m2d_bench.AR_M2D",
        "weight_file": "weights/m2d_vit_base/checkpoint-300.pth",
        "sample_rate": 16000,
        "output_layers": [-1],
        "task_metadata": "evar/metadata/esc50.csv",
        "id": "esc50_x",
        "runtime_cfg": {"lr": 3e-05, "seed": 42, "hidden": (), "epochs": 200, "id": "1234"},
        **changes,
    }


def linear(score, **changes):
    report = f"Linear evaluation: esc50_x_1 esc50 -> {score:.5f}\n{config(**changes)}\nlogs/x.csv"
    return ["AR-M2D", "esc50", score, "1a2b", report]


def finetuned(folds, **changes):
    mean = sum(folds) / len(folds)
    listed = ", scores: [" + ", ".join(f"{fold:.5f}" for fold in folds) + "]" if len(folds) > 1 else ""
    report = (
        f"Finetuning x-lr1s43 on esc50 -> mean score: {mean:.5f}{listed}, best weight: logs/w.pth, "
        f"score file: logs/s.csv, config: {config(**changes)}"
    )
    return ["AR-M2D", "esc50", mean, "1a2b", report]


def write_scores(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([scores.COLUMNS, *rows])
    return path


def seeded(seed):
    return {"runtime_cfg": {**config()["runtime_cfg"], "seed": seed}}


def test_seeds_of_the_same_settings_join_one_record(tmp_path, capsys):
    path = write_scores(tmp_path / "scores.csv", [linear(0.9), linear(0.92, **seeded(43)), linear(0.91, **seeded(44))])
    assert main(["evar", "results", str(path), "--runs", str(tmp_path / "runs")]) == 0
    assert "m2d_vit_base  esc50   linear accuracy (%)  91.00 ± 2.48     3" in capsys.readouterr().out
    (record,) = (tmp_path / "runs").rglob("*.json")
    assert "checkpoint-300" not in record.read_text().split('"settings"')[1].split('"repeated"')[0]


def test_scores_that_differ_in_a_setting_are_told_apart(tmp_path, capsys):
    runtime = config()["runtime_cfg"]
    rows = [
        linear(0.9, feature_d=960, unit_samples=16000),
        linear(0.8, feature_d=0, unit_samples=16000),  # of a second pass, which makes no model
        linear(0.7, feature_d=960, unit_samples=32000),
        linear(0.6, feature_d=960, unit_samples=16000, runtime_cfg={**runtime, "lr": 0.1}),
    ]
    path = write_scores(tmp_path / "scores.csv", rows)
    assert main(["evar", "results", str(path), "--runs", str(tmp_path / "runs")]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("m2d_vit_base")]
    assert [row.split(" esc50")[0].rstrip() for row in printed] == [
        "m2d_vit_base (unit_samples=16000, lr=3e-05)",
        "m2d_vit_base (unit_samples=16000, lr=3e-05, passes=2)",
        "m2d_vit_base (unit_samples=32000, lr=3e-05)",
        "m2d_vit_base (unit_samples=16000, lr=0.1)",
    ]


def test_scores_of_other_classes_say_nothing_of_passes(tmp_path):
    row = linear(0.9, audio_repr="ar_m2d.AR_M2D", feature_d=0)
    ((run,), _) = scores.read(write_scores(tmp_path / "scores.csv", [row]))
    assert "passes" not in run.settings


@pytest.mark.parametrize("name", ["hf:facebook/wav2vec2-base", "/own/own.py:Own", "random:m2d_vit_tiny-80x208p16x16"])
def test_encoders_that_are_no_files_keep_their_names(tmp_path, name):
    ((run,), _) = scores.read(write_scores(tmp_path / "scores.csv", [linear(0.9, weight_file=name)]))
    assert run.encoder["name"] == name


def test_folds_of_fine_tuning_are_read(tmp_path):
    records, failures = scores.read(write_scores(tmp_path / "ft-scores.csv", [finetuned([0.9, 0.8]), finetuned([0.7])]))
    assert failures == []
    assert [[score.score for score in record.scores] for record in records] == [[0.9, 0.8], [0.7]]
    assert {record.protocol for record in records} == {"finetune"}


@pytest.mark.parametrize(
    ("task", "metric"), [("as", "mAP"), ("fsd50k", "mAP"), ("us8k", "accuracy"), ("_", "accuracy")]
)
def test_scores_are_of_the_metric_of_our_task_of_that_name(tmp_path, task, metric):
    name, _, *others = linear(0.5)
    ((run,), _) = scores.read(write_scores(tmp_path / "scores.csv", [[name, task, *others]]))
    assert run.task["metric"] == metric


def test_what_cannot_be_parsed_is_listed_and_the_rest_read(tmp_path, capsys):
    rows = [
        linear(0.9),
        ["AR-M2D", "esc50", "0.9", "bad1", "a note"],
        linear(0.9, runtime_cfg={"lr": 1}),
        linear(0.9, **seeded("forty")),
        linear(9.0),
        ["AR-M2D", "zs_esc50", "0.9", "bad3", "Zero-shot evaluation: x zs_esc50 -> 0.9\n{}"],
        ["AR-M2D", "esc50", "0.9", "bad2", "Linear evaluation: x y -> 0.9\n{'a': open('x')}\nlogs"],
    ]
    path = write_scores(tmp_path / "scores.csv", rows)
    assert main(["evar", "results", str(path), "--runs", str(tmp_path / "runs")]) == 1
    printed = capsys.readouterr()
    assert "90.00" in printed.out
    assert [f"record {number}" in printed.err for number in range(1, 8)] == [False, True, True, True, True, True, True]
    assert "zero-shot scores are out of scope" in printed.err


def test_another_file_is_refused(tmp_path):
    (tmp_path / "scores.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="EVAR writes"):
        scores.read(tmp_path / "scores.csv")
    with pytest.raises(DataError, match="cannot be read"):
        scores.read(tmp_path / "none.csv")
