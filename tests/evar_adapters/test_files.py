"""EVAR's files in and out: metadata as tasks, tasks as metadata, scores as records."""

import csv

import numpy as np
import pytest
import soundfile

from m2d_bench import tasks
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


def test_the_copy_at_the_encoders_rate_is_taken(tmp_path, caplog):
    task = tasks.get(f"evar:{write(tmp_path, FOLDS, rates=(16000, 32000))}")
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
        (("file_name", "label", "split"), FOLDS, DataError, r"split holds \['1', '2'\]; allowed are"),
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


@pytest.mark.parametrize("name", ["hf:facebook/wav2vec2-base", "/own/own.py:Own", "random:m2d_vit_tiny-80x208p16x16"])
def test_encoders_that_are_no_files_keep_their_names(tmp_path, name):
    ((run,), _) = scores.read(write_scores(tmp_path / "scores.csv", [linear(0.9, weight_file=name)]))
    assert run.encoder["name"] == name


def test_folds_of_fine_tuning_are_read(tmp_path):
    runs, failures = scores.read(write_scores(tmp_path / "ft-scores.csv", [finetuned([0.9, 0.8]), finetuned([0.7])]))
    assert failures == []
    assert [[score.score for score in run.scores] for run in runs] == [[0.9, 0.8], [0.7]]
    assert {run.protocol for run in runs} == {"finetune"}


def test_what_cannot_be_parsed_is_listed_and_the_rest_read(tmp_path, capsys):
    rows = [
        linear(0.9),
        ["AR-M2D", "esc50", "0.9", "bad1", "a note"],
        linear(0.9, runtime_cfg={"lr": 1}),
        linear(0.9, **seeded("forty")),
        linear(9.0),
        ["AR-M2D", "esc50", "0.9", "bad2", "Linear evaluation: x y -> 0.9\n{'a': open('x')}\nlogs"],
    ]
    path = write_scores(tmp_path / "scores.csv", rows)
    assert main(["evar", "results", str(path), "--runs", str(tmp_path / "runs")]) == 1
    printed = capsys.readouterr()
    assert "90.00" in printed.out
    assert [f"record {number}" in printed.err for number in range(1, 7)] == [False, True, True, True, True, True]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "scores.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="EVAR writes"):
        scores.read(tmp_path / "scores.csv")
    with pytest.raises(DataError, match="cannot be read"):
        scores.read(tmp_path / "none.csv")
