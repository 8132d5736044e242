"""HEAR task folders: read as tasks, with HEAR's own folds and metrics, and refused where they are not understood."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile

from m2d_bench import runs, tasks
from m2d_bench.cli import main
from m2d_bench.errors import DataError, UsageError
from m2d_bench.evaluation import embeddings
from m2d_bench.evaluation import linear as evaluation
from m2d_bench.evaluation.linear import LinearSettings, linear
from m2d_bench.results import summary
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset
from tests.conftest import small_encoder

LABELS = [f"tone{i}" for i in range(4)]
FOLDS = [f"fold{i:02d}" for i in range(5)]


def write_hear(folder, splits, /, clips=12, rates=(16000,), **changes):
    """A miniature in the preprocessed format: half-second tones in noise, two of four at once where multilabel."""
    folded = splits[0] == "fold00"
    metadata = {
        "task_name": "tones",
        "version": "v1.0.0",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "presplit_kfold" if folded else "trainvaltest",
        "sample_duration": 0.5,
        "evaluation": ["top1_acc"],
        "splits": splits,
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    with (folder / "labelvocabulary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("idx", "label"), *reversed(list(enumerate(LABELS)))])
    rng = np.random.default_rng(0)
    for split in splits:
        index = {}
        for clip in range(clips):
            chosen = [clip % 4]
            if metadata["prediction_type"] == "multilabel":
                chosen = sorted({clip % 4, clip // 4 % 4}) if clip else []
            index[f"{split}-{clip}.wav"] = [LABELS[i] for i in chosen]
            for rate in rates:
                time = np.arange(rate // 2) / rate
                wave = sum((0.1 * np.sin(2 * np.pi * 300 * 1.7**i * time) for i in chosen), start=0 * time)
                path = folder / str(rate) / split / f"{split}-{clip}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave + 0.01 * rng.standard_normal(len(time)), rate)
        (folder / f"{split}.json").write_text(json.dumps(index))
    return folder


OFFICIAL = ["train", "valid", "test"]


def test_a_folder_of_folds_is_a_task_with_hears_own_validation_folds(tmp_path):
    folder = write_hear(tmp_path / "any-name", FOLDS)
    task = tasks.get(f"hear:{folder}")
    assert (task.name, task.metric, task.clip_seconds) == ("hear:tones-v1.0.0", "accuracy", 0.5)
    assert task.clip_seconds_source == "task_metadata.json"
    assert (task.n_classes, task.n_clips) == (4, 60)
    found = dataset.load(task, Storage())
    assert found.classes == tuple(LABELS)
    rows = evaluation._problems(found, all_rows(found), [42], 1.0)
    for problem, test, valid in zip(rows, FOLDS, FOLDS[1:] + FOLDS[:1], strict=True):
        assert problem.fold == test
        assert set(found.splits[problem.test]) == {test}
        assert set(found.splits[problem.valid]) == {valid}
        assert set(found.splits[problem.train]) == set(FOLDS) - {test, valid}


def all_rows(found):
    import torch

    rows = torch.arange(len(found.files))
    return embeddings.Embeddings(torch.zeros(len(rows), 1), rows, rows)


def test_linear_evaluates_folds_and_records_no_drawn_validation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_hear(tmp_path / "tasks" / "tones", FOLDS)
    words = ["linear", "--tasks", "hear:tasks/tones", "--model", "random:m2d_vit_tiny-80x208p16x16", "--seeds", "2"]
    assert main([*words, "--learning-rate", "1e-2", "--epochs", "60"]) == 0
    assert "hear:tones-v1.0.0  linear accuracy (%)" in capsys.readouterr().out
    (path,) = (tmp_path / "runs").rglob("*.json")
    assert path.parent.name == "hear_tones-v1.0.0"
    run = runs.load(path)
    assert run.settings["validation_fraction"] is None
    assert run.repeated == ("initialisation", "shuffling")
    assert {score.fold for score in run.scores} == set(FOLDS)
    assert np.mean([score.score for score in run.scores]) > 0.9


def test_every_metric_of_a_multilabel_task_is_scored(tmp_path):
    folder = write_hear(
        tmp_path / "tones",
        OFFICIAL,
        clips=32,
        prediction_type="multilabel",
        evaluation=["mAP", "d_prime", "aucroc", "top1_acc"],
    )
    settings = LinearSettings(seeds=2, learning_rate=1e-2, epochs=60, runs=tmp_path / "runs")
    (run,) = linear(small_encoder(), f"hear:{folder}", settings)
    rows = {row["metric"]: row for row in summary([run])}
    assert list(rows) == ["mAP", "d_prime", "aucroc", "accuracy"]
    assert rows["mAP"]["mean"] > 90
    assert (rows["d_prime"]["unit"], rows["aucroc"]["unit"]) == ("", "%")
    assert 1 < rows["d_prime"]["mean"] < 6
    assert rows["aucroc"]["mean"] == pytest.approx(100 * np.mean([s.others["aucroc"] for s in run.scores]), abs=0.01)
    for score in run.scores:
        of_classes = [values["d_prime"] for values in score.per_class.values()]
        assert len(of_classes) == 4
        assert np.mean(of_classes) == pytest.approx(score.others["d_prime"], abs=1e-5)


def test_a_clip_may_have_no_label(tmp_path):
    folder = write_hear(tmp_path / "tones", OFFICIAL, prediction_type="multilabel", evaluation=["mAP"])
    labels = dataset.load(tasks.get(f"hear:{folder}"), Storage()).labels
    assert labels.shape == (36, 4)
    assert labels[0].tolist() == [0, 0, 0, 0]


def test_pitch_and_chroma_are_accuracies_of_the_vocabularys_order(tmp_path):
    folder = write_hear(tmp_path / "tones", OFFICIAL, evaluation=["pitch_acc", "chroma_acc"])
    task = tasks.get(f"hear:{folder}")
    assert (task.metric, task.other_metrics) == ("accuracy", ("chroma_accuracy",))
    assert dataset.load(task, Storage()).labels[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rates", "wanted", "taken"),
    [
        ((16000, 32000), 16000, 16000),
        ((16000, 32000), 32000, 32000),
        ((22050, 48000), 16000, 22050),
        ((16000,), 32000, 16000),
    ],
)
def test_the_copy_at_the_encoders_rate_is_taken(tmp_path, rates, wanted, taken, caplog):
    folder = write_hear(tmp_path / "tones", OFFICIAL, clips=4, rates=rates)
    found = dataset.load(tasks.get(f"hear:{folder}"), Storage(), wanted)
    assert all(file.startswith(f"{taken}/") for file in found.files)
    assert ("resampled" in caplog.text) == (taken != wanted)
    assert len(found.waveform(0, wanted)) == wanted // 2


def test_a_change_of_metric_starts_a_record_of_its_own(tmp_path):
    folder = write_hear(tmp_path / "tones", OFFICIAL, evaluation=["top1_acc"])
    settings = LinearSettings(seeds=2, epochs=3, runs=tmp_path / "runs")
    linear(small_encoder(), f"hear:{folder}", settings)
    metadata = folder / "task_metadata.json"
    for number, changed in enumerate(('["mAP"]', '["mAP", "aucroc"]'), 2):
        metadata.write_text(re.sub(r'"evaluation": \[.*?\]', f'"evaluation": {changed}', metadata.read_text()))
        (run,) = linear(small_encoder(), f"hear:{folder}", settings)
        assert [row["metric"] for row in summary([run])] == json.loads(changed)
        assert len(list((tmp_path / "runs").rglob("*.json"))) == number


def test_a_metric_that_is_undefined_in_a_fold_stops_before_any_training(tmp_path):
    folder = write_hear(tmp_path / "tones", FOLDS, clips=4, evaluation=["top1_acc", "aucroc"])
    index = json.loads((folder / "fold02.json").read_text())
    (folder / "fold02.json").write_text(json.dumps({file: ["tone0"] for file in index}))
    with pytest.raises(TasksFailed, match="test split of seed 42, fold fold02 holds too few labels: aucroc"):
        linear(small_encoder(), f"hear:{folder}", LinearSettings(seeds=1, epochs=2, runs=tmp_path / "runs"))


def test_clips_without_a_common_length_are_padded_to_the_longest(tmp_path):
    folder = write_hear(tmp_path / "tones", OFFICIAL, clips=4, sample_duration=None)
    soundfile.write(folder / "16000" / "test" / "test-0.wav", np.zeros(20000), 16000)
    task = tasks.get(f"hear:{folder}")
    assert (task.clip_seconds, task.clip_seconds_source) == (1.25, "longest clip")
    assert len(dataset.load(task, Storage()).waveform(1, 16000)) == 20000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embedding_type": "event"}, "embedding_type is 'event'.*Use heareval"),
        ({"prediction_type": "regression"}, "multiclass and multilabel"),
        ({"split_mode": "loo"}, "split_mode is 'loo'; known are trainvaltest"),
        ({"evaluation": ["event_onset_200ms_fms"]}, "unknown metrics.*known are top1_acc"),
        ({"evaluation": []}, "unknown metrics"),
        ({"evaluation": None}, "lacks evaluation"),
        ({"sample_duration": "long"}, "sample_duration is 'long'; expected seconds"),
        ({"split_mode": "presplit_kfold", "splits": ["fold00", "fold01"]}, "2 folds; it takes three"),
        ({"split_mode": "presplit_kfold", "splits": ["fold00", "fold01", "fold02"]}, r"fold00\.json: cannot be read"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused(tmp_path, changes, says):
    folder = write_hear(tmp_path / "tones", OFFICIAL, clips=4, **changes)
    with pytest.raises(DataError, match=says):
        tasks.get(f"hear:{folder}")


def test_a_folder_that_is_none_says_what_is_there(tmp_path):
    write_hear(tmp_path / "tones", OFFICIAL, clips=4)
    with pytest.raises(UsageError, match=r"no HEAR task folder.*It holds the tasks tones"):
        tasks.get(f"hear:{tmp_path}")
    assert main(["linear", "--tasks", f"hear:{tmp_path / 'nowhere'}"]) == 2


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("labelvocabulary.csv", "idx,name\n0,tone0\n", "no column label; it has idx, name"),
        ("labelvocabulary.csv", "idx,label\n0,tone0\n0,tone1\n5,tone2\n5,tone3\n", "each once; got 0, 0, 5, 5"),
        ("valid.json", "{}", "names no clip"),
        ("labelvocabulary.csv", "idx,label\n0,tone0\n", "no class of the task: tone1, tone2"),
        ("task_metadata.json", "[]", "holds a list"),
        ("task_metadata.json", "{", "cannot be read as JSON"),
        ("test.json", '{"a.wav": "tone0"}', "lists of labels"),
        ("test.json", '{"a.wav": ["tone0", "tone1"]}', "1 clips have not one label: 16000/test/a.wav"),
        ("test.json", '{"a.wav": ["tone0"]}', "1 of 9 files of the index are missing"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, text, says):
    folder = write_hear(tmp_path / "tones", OFFICIAL, clips=4)
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=says):
        dataset.load(tasks.get(f"hear:{folder}"), Storage())


def test_a_folder_without_sound_is_refused(tmp_path):
    folder = write_hear(tmp_path / "tones", OFFICIAL, clips=4)
    (folder / "16000").rename(folder / "sounds")
    with pytest.raises(DataError, match="named by its sample rate, such as 16000"):
        dataset.load(tasks.get(f"hear:{folder}"), Storage())
