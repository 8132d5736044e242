"""A task's clips are found, checked and decoded as the protocol says."""

import numpy as np
import pandas as pd
import pytest
import soundfile

from m2d_bench import tasks
from m2d_bench.errors import DataError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset, folders
from m2d_bench.tasks.task import Folds, Layout, Task
from tests.conftest import write_tones

LAYOUT = Layout(folders=("tiny",), index="index.csv", file="{filename}")


def write_task(root, rows, seconds=1.0):
    """A folder of clips: rows of filename, label, split."""
    (root / "tiny").mkdir(parents=True)
    for i, (name, *_) in enumerate(rows):
        length = seconds[i] if isinstance(seconds, list) else seconds
        soundfile.write(root / "tiny" / name, np.linspace(0, 0.5, round(8000 * length)), 8000, subtype="FLOAT")
    pd.DataFrame(rows, columns=["filename", "label", "split"]).to_csv(root / "tiny" / "index.csv", index=False)
    return Storage(data=root)


def tiny_task(**changes):
    values = {
        "name": "tiny",
        "domain": "speech",
        "metric": "accuracy",
        "clip_seconds": 1.0,
        "n_classes": 2,
        "n_clips": 4,
    }
    return Task(**{**values, "layouts": (LAYOUT,), **changes})


ROWS = [("a.wav", "x", "train"), ("b.wav", "y", "train"), ("c.wav", "x", "valid"), ("d.wav", "y", "test")]


def test_esc10_is_found_under_the_data_root_and_in_it(tones):
    under = dataset.load(tasks.get("esc10"), Storage(data=tones))
    inside = dataset.load(tasks.get("esc10"), Storage(data=tones / "esc10"))
    assert under.fingerprint == inside.fingerprint
    assert len(under.files) == 400
    assert sorted(set(under.splits)) == ["1", "2", "3", "4", "5"]


def test_esc10_is_found_inside_esc50(tmp_path):
    root = write_tones(tmp_path / "ESC-50-master", "meta/esc50.csv", clips=500)
    index = pd.read_csv(root / "meta/esc50.csv")
    index.loc[400:, "esc10"] = False
    index.to_csv(root / "meta/esc50.csv", index=False)
    assert len(dataset.load(tasks.get("esc10"), Storage(data=tmp_path)).files) == 400


def test_esc10_in_ogg_is_read(tmp_path):
    root = write_tones(tmp_path / "esc10", suffix=".ogg")
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(44100 * 5.2))
    soundfile.write(root / "audio" / "0.ogg", noise, 44100)
    found = dataset.load(tasks.get("esc10"), Storage(data=tmp_path))
    assert len(found.files) == 400
    assert found.waveform(0, 16000).shape == (80000,)
    assert found.longer.nonzero()[0].tolist() == [0]


def test_official_splits_and_their_labels_are_read(tmp_path):
    found = dataset.load(tiny_task(), write_task(tmp_path, ROWS))
    assert found.classes == ("x", "y")
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.splits.tolist() == ["train", "train", "valid", "test"]


def test_a_published_set_in_class_folders_is_listed_by_its_task(tmp_path):
    storage = write_task(tmp_path, ROWS)
    for name, label, _ in ROWS:
        (tmp_path / "tiny" / label).mkdir(exist_ok=True)
        (tmp_path / "tiny" / name).rename(tmp_path / "tiny" / label / name)
    (tmp_path / "tiny" / "index.csv").rename(tmp_path / "tiny" / "test_list.txt")

    def entries(root, _):
        tested = (root / "test_list.txt").read_text()
        clips = folders.read_clips(root)[1]
        return root, [clip._replace(split="test" if f"{clip.file[2:]},y,test" in tested else "train") for clip in clips]

    task = tiny_task(layouts=(Layout(folders=("tiny",), index="test_list.txt"),), lister=entries)
    found = dataset.load(task, storage)
    assert found.files == ("x/a.wav", "x/c.wav", "y/b.wav", "y/d.wav")
    assert found.splits.tolist() == ["train", "train", "train", "test"]


def test_several_labels_in_a_cell_are_multi_hot(tmp_path):
    rows = [("a.wav", "x,y", "train"), ("b.wav", "y", "test")]
    found = dataset.load(tiny_task(metric="mAP", multilabel=True, n_clips=2), write_task(tmp_path, rows))
    assert found.labels.tolist() == [[1, 1], [0, 1]]


def test_clips_are_cut_or_padded_at_the_end(tmp_path):
    found = dataset.load(tiny_task(), write_task(tmp_path, ROWS, seconds=[1.0, 0.5, 2.0, 1.005]))
    assert found.longer.nonzero()[0].tolist() == [2]  # 5 ms more is less than a frame
    short = found.waveform(1, 8000)
    assert len(short) == 8000
    assert np.count_nonzero(short[4000:]) == 0
    assert np.allclose(found.waveform(2, 8000), np.linspace(0, 0.5, 16000)[:8000], atol=1e-6)


@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_clips_of_some_tasks_are_faded_and_repeated(tmp_path, seconds):
    found = dataset.load(tiny_task(fade_seconds=1 / 16), write_task(tmp_path, ROWS, seconds=seconds))
    waveform, clip = found.waveform(0, 8000, place=0.5), np.linspace(0, 0.5, round(8000 * seconds))[:8000]
    fade, period = np.linspace(0, 1, 500), round(8000 * seconds)
    assert np.allclose(waveform[:500], clip[:500] * fade, atol=1e-4)
    assert np.allclose(waveform[500 : period - 500], clip[500 : period - 500], atol=1e-4)
    if seconds < 1:
        assert np.allclose(waveform[period - 500 : period], clip[-500:] * fade[::-1], atol=1e-4)
        assert np.allclose(waveform[period : 2 * period], waveform[:period])
        assert waveform[-1] == 0
    assert len(waveform) == 8000


def test_the_random_crop_of_a_clip_is_always_the_same_and_not_its_start(tmp_path):
    found = dataset.load(tiny_task(), write_task(tmp_path, ROWS, seconds=2.0))
    crop = found.waveform(0, 8000, place=found.crop_place(0))
    assert len(crop) == 8000
    assert crop[0] > 0
    assert np.array_equal(crop, found.waveform(0, 8000, place=found.crop_place(0)))
    assert not np.array_equal(crop, found.waveform(1, 8000, place=found.crop_place(1)))


def test_absent_data_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"--data DIR"):
        dataset.load(tasks.get("esc50"), Storage())
    with pytest.raises(DataError, match="does not exist"):
        dataset.load(tasks.get("esc50"), Storage(data=tmp_path / "gone"))
    with pytest.raises(DataError, match=r"ESC-50-master.*github\.com/karolpiczak"):
        dataset.load(tasks.get("esc50"), Storage(data=tmp_path))


def test_incomplete_data_is_refused(tmp_path, tones):
    storage = write_task(tmp_path, ROWS)
    for change, message in {"n_clips": "4 clips, the task has 9", "n_classes": "2 classes, the task has 9"}.items():
        with pytest.raises(DataError, match=message):
            dataset.load(tiny_task(**{change: 9}), storage)
    (tmp_path / "tiny" / "c.wav").unlink()
    with pytest.raises(DataError, match=r"1 of 4 files.*c\.wav"):
        dataset.load(tiny_task(), storage)
    with pytest.raises(DataError, match="no column fold"):
        dataset.load(tiny_task(folds=Folds(column="fold", count=2)), storage)


def test_unknown_splits_are_refused(tmp_path):
    with pytest.raises(DataError, match="holdout"):
        dataset.load(tiny_task(), write_task(tmp_path, [*ROWS[:3], ("d.wav", "y", "holdout")]))


def test_fingerprint_changes_with_the_clips(tmp_path):
    storage = write_task(tmp_path, ROWS)
    before = dataset.load(tiny_task(), storage).fingerprint
    assert dataset.load(tiny_task(), storage).fingerprint == before
    soundfile.write(tmp_path / "tiny" / "a.wav", np.zeros(8000), 8000, subtype="FLOAT")  # as long as it was
    assert dataset.load(tiny_task(), storage).fingerprint != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CSV"),
        (b"a,b\n1,2,3\n1,2,3,4\n", "not a CSV"),
        (b"label\n\xe4\n", "not a CSV"),
        (b"label,split\n", "filename"),
    ],
)
def test_unusable_index_files_are_named(tmp_path, content, message):
    storage = write_task(tmp_path, ROWS)
    (tmp_path / "tiny" / "index.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"index\.csv.*{message}"):
        dataset.load(tiny_task(), storage)


def test_misspelt_task_gets_a_suggestion():
    with pytest.raises(UsageError, match=r"Unknown task 'ecs50'\. Did you mean esc50"):
        tasks.get("ecs50")


def test_every_task_is_a_value_that_agrees_with_its_name():
    for name in tasks.NAMES:
        assert tasks.get(name).name == name
        assert tasks.get(name).synthetic == (name in tasks.BUILT_IN)
