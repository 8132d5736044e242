"""One's own data: folders of class folders and tables of clips, lying anywhere, become tasks as they are meant."""

import os
import unicodedata

import numpy as np
import pytest
import soundfile

from m2d_bench import tasks
from m2d_bench.cli import main
from m2d_bench.errors import DataError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset

CLASSES = ("owl", "wren")


def write_clip(path, seconds=0.05, rate=16000, channels=1):
    """A clip of noise that its path alone decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(os.fsencode(path.name))).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, 0.1 * noise, rate)
    return path


def write_folder(root, files=6, classes=CLASSES, **clip):
    """Class folders, each file of a name that stands alone."""
    for name in classes:
        for number in range(files):
            write_clip(root / name / f"{name}{number}.wav", **clip)
    return root


def write_table(path, rows, header="file_name,label,split", clips=True, **clip):
    """A CSV file, and its clips below its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    separator = max(",;\t", key=header.count)
    for row in rows if clips else ():
        write_clip(path.parent / row.split(separator)[0].strip('"'), **clip)
    return path


ROWS = [f"{i}.wav,{CLASSES[i % 2]},{split}" for i, split in enumerate(["train"] * 4 + ["valid"] * 2 + ["test"] * 2)]


def load(path, **storage):
    storage = Storage(**storage)
    return dataset.load(tasks.get(str(path), storage), storage)


def test_a_folder_of_class_folders_is_a_task(tmp_path):
    found = load(write_folder(tmp_path / "birds"))
    assert found.task.name == "own:birds"
    assert (found.task.metric, found.task.multilabel, found.task.clip_seconds) == ("accuracy", False, 0.05)
    assert found.classes == CLASSES
    assert found.labels.tolist() == [0] * 6 + [1] * 6
    assert sorted({*found.splits.tolist()}) == ["1", "2", "3", "4", "5"]
    assert "no split or fold is given; 5 folds are drawn with seed 0" in found.facts["warnings"][-1]


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("train", "valid", "test"), {"train", "valid", "test"}),
        (("Training", "val", "eval"), {"train", "valid", "test"}),
        (("train", "dev", "test"), {"train", "valid", "test"}),
        (("train", "test"), {"train", "test"}),
        (("fold1", "fold2", "fold10"), {"fold1", "fold2", "fold10"}),
        (("Fold_1", "Fold_2"), {"Fold_1", "Fold_2"}),
    ],
)
def test_folders_above_the_classes_are_splits_or_folds(tmp_path, parts, named):
    for part in parts:
        for name in CLASSES:
            write_clip(tmp_path / "birds" / part / name / "below" / f"{part}{name}.wav")
    found = load(tmp_path / "birds")
    assert {*found.splits.tolist()} == named
    assert found.classes == CLASSES
    assert (found.task.folds is None) == ("train" in named)
    assert not [warning for warning in found.warnings if "drawn" in warning]


@pytest.mark.parametrize("names", [("train", "car"), ("test", "car"), ("folder1", "fold1")])
def test_classes_may_be_called_as_splits_are(tmp_path, names):
    assert load(write_folder(tmp_path, classes=names)).classes == tuple(sorted(names))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "no sound file in a folder of its class. Allowed are FOLDER/CLASS"),
        (["a.wav", "b.wav"], "no sound file in a folder of its class"),
        (["train/a/x.wav", "test/a/y.wav", "noise/z.wav"], "holds train and test, which are splits, beside noise"),
        (["train/a/x.wav", "train/b/y.wav", "valid/a/z.wav"], r"holds \['train', 'valid'\]; it takes train and test"),
        (["a/1.wav", "a/2.wav", "a/3.wav", "a/4.wav", "a/5.wav", "a/6.wav"], "with the classes a; it takes"),
        (["a/1.wav", "a/2.wav", "b/3.wav"], "3 clips in 3 groups are too few to draw 5 folds"),
    ],
)
def test_a_folder_of_another_layout_is_refused(tmp_path, files, says):
    for file in files:
        write_clip(tmp_path / file)
    with pytest.raises(DataError, match=says):
        load(tmp_path)


def test_what_is_left_out_of_a_folder_is_counted_and_said(tmp_path, caplog):
    write_folder(tmp_path / "birds")
    for name in ("owl/notes.txt", "owl/.hidden.wav", "._wren", ".git/x.wav", "wren/list.csv", "wren/more.txt"):
        (tmp_path / "birds" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "birds" / name).write_text("")
    write_clip(tmp_path / "birds" / "loose.wav")
    assert len(load(tmp_path / "birds").files) == 12
    text = caplog.text
    assert "no sound by their suffix: 2 .txt, 1 .csv." in text
    assert "3 hidden files and folders are left out" in text
    assert "1 sound files in no class folder are left out, such as loose.wav" in text


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("file_name,label,split", "{},owl,train"),
        ("label;split;file_name", "owl;train;{}"),
        ("\ufefffilename\tclass\tsubset", "{}\towl\ttraining"),
        ("Path,Category,Subset,extra", '"{}", owl ,Train,x'),
        ("audio,target,split", "{},owl,TRAIN"),
    ],
)
def test_a_table_is_read_as_people_write_it(tmp_path, header, cells):
    others = [cells.format(f"{i}.wav") for i in range(3)]
    others += [
        cells.format("x.wav").replace("owl", "wren"),
        *(
            cells.format(f"{name}.wav").replace("owl", name).lower().replace("training", "train").replace("train", part)
            for name in CLASSES
            for part in ("val", "test")
        ),
    ]
    path = write_table(tmp_path / "birds.csv", others, header, clips=False)
    for name in ("0", "1", "2", "x", *CLASSES):
        write_clip(tmp_path / f"{name}.wav")
    found = load(path)
    assert found.classes == CLASSES
    assert found.splits.tolist() == ["train"] * 4 + ["valid", "test"] * 2


@pytest.mark.parametrize("fold", ["fold", "Fold"])
def test_folds_of_a_table_are_its_own(tmp_path, fold):
    found = load(
        write_table(
            tmp_path / "birds.csv", [f"{i}.wav,{CLASSES[i % 2]},{i // 2}.0" for i in range(6)], f"file,label,{fold}"
        )
    )
    assert found.task.folds.count == 3
    assert found.splits.tolist() == ["0", "0", "1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("header", "row", "says"),
    [
        ("name,label", "a.wav,owl", r"no column file_name \(or filename, file, path, audio\); it has name, label"),
        ("file,tag", "a.wav,owl", r"no column label \(or labels, class, category, target\); it has file, tag"),
        ("file,label", ",owl", "1 lines name no file"),
        (
            "file,label,start_s,end_s",
            "a.wav,owl,2,1",
            "start_s and end_s of a.wav are '2' and '1'; allowed are seconds",
        ),
        ("file,label,start_s,end_s", "a.wav,owl,-1,1", "start_s and end_s of a.wav are '-1' and '1'"),
        ("file,label,start_s,end_s", "a.wav,owl,nan,1", "start_s and end_s of a.wav are 'nan'"),
        ("file,label,start_s,end_s", "a.wav,owl,0:01,1", "start_s and end_s of a.wav are '0:01'"),
        ("file,label,end_s", "a.wav,owl,0", "start_s and end_s of a.wav are '' and '0'"),
        (
            "file,label",
            "gone.wav,owl",
            r"none of its 1 files is there, such as gone.wav. Looked in .*; name the folder",
        ),
        ("file,label,split", "a.wav,owl,1", r"split holds \['1'\]"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, header, row, says):
    write_clip(tmp_path / "a.wav")
    with pytest.raises(DataError, match=says):
        load(write_table(tmp_path / "birds.csv", [row], header, clips=False))


def test_files_lie_beside_the_table_or_in_the_data_folder_or_where_they_say(tmp_path):
    rows = [f"deep/{row}" for row in ROWS]
    beside = load(write_table(tmp_path / "one" / "birds.csv", rows))
    lists = tmp_path / "lists" / "birds.csv"
    apart = load(write_table(lists, rows, clips=False), data=tmp_path / "one")
    above = load(write_table(tmp_path / "one" / "lists" / "birds.csv", [f"../{row}" for row in rows], clips=False))
    absolute = load(write_table(lists, [f"{tmp_path}/one/{row}" for row in rows], clips=False))
    assert beside.fingerprint == apart.fingerprint
    assert beside.files == apart.files == tuple(row.split(",")[0] for row in rows)
    assert above.files == absolute.files == tuple(row.split(",")[0] for row in ROWS)
    assert above.fingerprint == absolute.fingerprint
    windows = load(write_table(lists, [row.replace("/", "\\") for row in rows], clips=False), data=tmp_path / "one")
    assert windows.files == beside.files


def test_some_missing_files_are_named(tmp_path):
    path = write_table(tmp_path / "birds.csv", ROWS)
    (tmp_path / "3.wav").unlink()
    with pytest.raises(DataError, match=r"1 of 8 files of the index are missing from .*: 3\.wav\."):
        load(path)


@pytest.mark.parametrize(("written", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_japanese_names_are_found_in_either_form_of_unicode(tmp_path, written, there):
    rows = [row.replace("owl", "ふくろう").replace(".wav", "が.wav") for row in ROWS]
    path = write_table(tmp_path / "とり.csv", [unicodedata.normalize(written, row) for row in rows], clips=False)
    for row in rows:
        write_clip(tmp_path / unicodedata.normalize(there, row.split(",")[0]))
    found = load(path)
    assert found.task.name == "own:とり"
    assert found.classes == ("wren", "ふくろう")
    assert found.files[0] == unicodedata.normalize(there, "0が.wav")


def segments(tmp_path, rows, header="file_name,label,start_s,end_s,split"):
    """Clips of stretches of files of one second, each sample the time in seconds."""
    path = write_table(tmp_path / "calls.csv", rows, header, clips=False)
    for name in {row.split(",")[0] for row in rows}:
        soundfile.write(tmp_path / name, np.arange(8000) / 8000, 8000, subtype="PCM_24")  # without a time in its header
    return path


SEGMENTS = ["a.wav,owl,0,0.25,train", "a.wav,wren,0.5,0.75,train", "b.wav,owl,,,test", "b.wav,wren,0.75,,test"]


def test_segments_are_read_where_they_lie(tmp_path):
    found = load(segments(tmp_path, SEGMENTS))
    assert found.seconds.tolist() == [0.25, 0.25, 1.0, 0.25]
    assert found.task.clip_seconds == 0.438
    assert found.longer.tolist() == [False, False, True, False]
    times = [found.waveform(clip, 8000) for clip in range(4)]
    assert [wave[0] for wave in times] == pytest.approx([0, 0.5, 0, 0.75])
    assert [np.count_nonzero(wave) for wave in times] == [1999, 2000, 3503, 2000]
    assert found.waveform(2, 8000, place=1.0)[-1] == pytest.approx(1 - 1 / 8000, abs=1e-4)


def test_a_segment_that_moves_is_other_data_and_a_whole_file_is_as_before(tmp_path):
    first = load(segments(tmp_path, SEGMENTS)).fingerprint
    assert load(segments(tmp_path, [SEGMENTS[0].replace("0.25", "0.3"), *SEGMENTS[1:]])).fingerprint != first
    whole = [f"{row.split(',')[0]},{row.split(',')[1]},,,{row.split(',')[4]}" for row in SEGMENTS]
    plain = [row.replace(",,,", ",") for row in whole]
    table = write_table(tmp_path / "calls.csv", plain, "file_name,label,split", clips=False)
    assert load(table).fingerprint == load(segments(tmp_path, whole)).fingerprint != first


def test_a_segment_beyond_its_file_is_a_fault_and_one_over_its_end_is_said(tmp_path):
    rows = [*SEGMENTS, "a.wav,owl,0.5,1.5,train", "a.wav,wren,3,4,train"]
    found = load(segments(tmp_path, rows))
    assert "1 clips that end after their file: a.wav (0.5-1.5)." in " ".join(found.warnings)
    with pytest.raises(DataError, match=r"a\.wav: ends before the clip at 3-4 s\."):
        found.readable()
    assert len(found.readable("skip").files) == 5


def test_a_file_whose_segments_train_and_test_is_said(tmp_path):
    rows = [*SEGMENTS, "a.wav,owl,0.3,0.4,test"]
    assert any(
        "sounds in several splits" in warning and "a.wav" in warning
        for warning in load(segments(tmp_path, rows)).warnings
    )


def test_segments_of_one_file_fall_into_one_fold(tmp_path):
    rows = [f"{name}.wav,{CLASSES[i % 2]},{i / 10},{(i + 1) / 10}" for name in "abcdefg" for i in range(4)]
    found = load(segments(tmp_path, rows, "file_name,label,start_s,end_s"))
    folds = {file: {*found.splits[np.array(found.files) == file].tolist()} for file in found.files}
    assert len(folds) == 7
    assert all(len(inside) == 1 for inside in folds.values())


def test_several_labels_of_a_clip_make_a_task_multi_label(tmp_path):
    rows = ['0.wav,"owl,wren",train', "1.wav,wren,train", "2.wav,,test", "3.wav,owl,test"]
    found = load(write_table(tmp_path / "birds.csv", rows))
    assert (found.task.metric, found.task.multilabel) == ("mAP", True)
    assert found.labels.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]


def test_few_clips_and_odd_lengths_are_said_and_other_seconds_are_taken(tmp_path):
    write_folder(tmp_path, files=6)
    write_folder(tmp_path, files=2, classes=("crow",))
    write_clip(tmp_path / "owl" / "long.wav", seconds=0.5)
    warnings = " ".join(load(tmp_path).warnings)
    assert "1 classes of fewer than 5 clips: crow (2)." in warnings
    assert "1 clips over twice or under half as long as the 0.08 s" in warnings
    assert "owl/long.wav (0.5 s)" in warnings
    (task,) = tasks.get_all([str(tmp_path)], clip_seconds=0.05).values()
    assert dataset.load(task, Storage()).waveform(0, 16000).shape == (800,)


def test_a_path_in_a_list_may_hold_commas_and_in_a_text_it_ends_there(tmp_path):
    folder = str(write_folder(tmp_path / "birds,3", files=6))
    assert list(tasks.get_all([folder, "esc10", folder])) == [folder, "esc10"]
    assert list(tasks.get_all("esc10, esc50,")) == ["esc10", "esc50"]
    with pytest.raises(UsageError, match="birds"):
        tasks.get_all(folder)


@pytest.mark.parametrize("spelling", ["folder:{}", "dir:{}", "csv:{}", "file://{}", "{}s", "{}/gone.csv", "my birds"])
def test_a_misspelt_path_tells_how_ones_own_data_is_named(tmp_path, spelling):
    folder = write_folder(tmp_path / "birds", files=1)
    with pytest.raises(UsageError, match=r"Unknown task .* your own data is .*, see docs/your-data\.md") as error:
        tasks.get(spelling.format(folder))
    assert (f"is {folder}," in str(error.value).replace("//", "")) == (":" in spelling)


def test_a_folder_in_the_data_folder_is_meant(tmp_path):
    write_folder(tmp_path / "birds", files=1)
    with pytest.raises(UsageError, match=f"your own data is {tmp_path}/birds,"):
        tasks.get("birds", Storage(data=tmp_path))


def test_a_task_of_a_folders_name_is_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "esc10")
    assert tasks.get("esc10").n_clips == 400
    assert tasks.get("./esc10").name == tasks.get("own:esc10").name == "own:esc10"
    with pytest.raises(UsageError, match="no such folder or file"):
        tasks.get("own:gone")


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".ogg"])
def test_rates_channels_and_formats_are_taken_as_they_are(tmp_path, suffix):
    for name in CLASSES:
        for number in range(5):
            write_clip(tmp_path / name / f"{name}{number}.wav", seconds=0.1, rate=96000)
            write_clip(tmp_path / name / f"{name}{number}{suffix}", seconds=0.1, rate=8000, channels=2)
    found = load(tmp_path)
    assert {found.waveform(clip, 16000).shape for clip in range(20)} == {(round(found.task.clip_seconds * 16000),)}
    assert {(content.sample_rate, content.channels) for content in found.clip_contents} == {(96000, 1), (8000, 2)}


def test_linear_evaluates_ones_own_data_and_records_how_folds_were_drawn(tmp_path, capsys):
    folder = write_folder(tmp_path / "birds", seconds=0.2)
    words = ["linear", "--model", "logmel", "--seeds", "1", "--epochs", "1", "--runs", str(tmp_path / "runs")]
    assert main([*words, "--tasks", str(folder), "--clip-seconds", "0.1", "--format", "json"]) == 0
    assert "own:birds" in capsys.readouterr().out
    (path,) = (tmp_path / "runs").rglob("*.json")
    text = path.read_text()
    assert "drawn with seed 0" in text
    assert '"clip_seconds": 0.1' in text


def test_recordings_whose_parts_are_of_two_classes_stay_together(tmp_path):
    for recording in range(6):
        for number, name in enumerate((*CLASSES, *CLASSES)):
            write_clip(tmp_path / name / f"rec{recording}_{number}.wav")
            write_clip(tmp_path / name / f"{recording}{number}.wav")
    found = load(tmp_path)
    folds: dict[str, set[str]] = {}
    for file, fold in zip(found.files, found.splits.tolist(), strict=True):
        folds.setdefault(file.split("/")[1].rpartition("_")[0] or file, set()).add(fold)
    assert len(folds) == 30  # six recordings, and 24 files of a number alone
    assert all(len(inside) == 1 for inside in folds.values())
    assert "over 30 groups: files of one name up to its last number" in found.warnings[-1]
