"""Files are read to their end once; an edit is seen, and what cannot be decoded is named or left out."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from m2d_bench import audio
from m2d_bench.cli import main
from m2d_bench.errors import DataError
from m2d_bench.settings import Storage, read_checked, write_checked
from m2d_bench.tasks import contents, dataset
from m2d_bench.tasks.contents import Contents
from tests.tasks import test_hear, test_index
from tests.tasks.test_dataset import ROWS, tiny_task, write_task


@pytest.fixture
def storage(tmp_path):
    written = write_task(tmp_path, ROWS, seconds=4.0)
    return Storage(data=written.data, cache=tmp_path / "cache")


@pytest.fixture
def settled(monkeypatch):
    """Files are remembered at once."""
    monkeypatch.setattr(contents, "_SETTLED", -(10**9))


def loaded(storage):
    return dataset.load(tiny_task(), storage)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [5000, 30000, 100000, -9000])
def test_the_fingerprint_sees_an_edit_of_one_bit_anywhere(storage, settled, position):
    path = storage.data_root / "tiny" / "b.wav"
    before = loaded(storage).fingerprint
    flip(path, position)
    assert loaded(storage).fingerprint != before
    flip(path, position)
    assert loaded(storage).fingerprint == before


def test_the_fingerprint_sees_an_edit_whose_time_was_set_back(storage, settled):
    path = storage.data_root / "tiny" / "b.wav"
    before, status = loaded(storage).fingerprint, path.stat()
    flip(path, 30000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert loaded(storage).fingerprint != before


def test_the_fingerprint_is_that_of_a_copy(storage, tmp_path):
    shutil.copytree(storage.data_root / "tiny", tmp_path / "elsewhere" / "tiny")
    assert loaded(Storage(data=tmp_path / "elsewhere", cache=storage.cache)).fingerprint == loaded(storage).fingerprint


def test_files_that_did_not_change_are_read_once(storage, settled, monkeypatch):
    before = loaded(storage).fingerprint
    read = []
    monkeypatch.setattr(audio, "inspect", lambda path: read.append(path.name) or ("", 1.0))
    assert loaded(storage).fingerprint == before
    assert read == []
    flip(storage.data_root / "tiny" / "c.wav", 5000)
    assert loaded(storage).fingerprint != before
    assert read == ["c.wav"]


def test_a_killed_reading_goes_on_where_it_was(storage, settled, monkeypatch):
    whole = loaded(storage).fingerprint
    (memory,) = storage.cache_root.rglob("contents/*")
    memory.unlink()
    monkeypatch.setattr(contents, "_CHUNK", 2)
    read, inspect = [], audio.inspect

    def killed(path):
        read.append(path.name)
        if path.name == "d.wav" and len(read) < 5:
            raise KeyboardInterrupt
        return inspect(path)

    monkeypatch.setattr(audio, "inspect", killed)
    with pytest.raises(KeyboardInterrupt):
        dataset.load(tiny_task(), storage, jobs=1)
    assert dataset.load(tiny_task(), storage, jobs=1).fingerprint == whole
    assert read == ["a.wav", "b.wav", "c.wav", "d.wav", "c.wav", "d.wav"]
    assert loaded(storage).fingerprint == whole
    assert len(read) == 6


def test_a_file_that_is_gone_is_a_fault_though_it_was_remembered(storage, settled):
    loaded(storage)
    (storage.data_root / "tiny" / "b.wav").unlink()
    (content,) = Contents(storage.data_root / "tiny", storage.cache_root).of(["b.wav"])
    assert "b.wav" in content.fault


def test_files_written_a_moment_ago_are_not_remembered(storage):
    loaded(storage).readable()
    assert not list(storage.cache_root.rglob("contents/*"))


def test_files_that_cannot_be_decoded_are_tried_again(storage, settled):
    path = storage.data_root / "tiny" / "c.wav"
    whole = path.read_bytes()
    path.write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"c\.wav: cannot be decoded"):
        loaded(storage).readable()
    path.write_bytes(whole)
    assert loaded(storage).readable().left_out == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 99999, os.urandom(500)])
def test_a_damaged_memory_is_not_believed(storage, settled, content):
    before = loaded(storage).fingerprint
    (memory,) = storage.cache_root.rglob("contents/*")
    whole = memory.read_bytes()
    memory.write_bytes(content or whole.replace(b'"seconds": 4.0', b'"seconds": 0.5'))
    again = loaded(storage)
    assert again.fingerprint == before
    assert again.longer.all()
    assert memory.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(storage, settled):
    storage.cache_root.write_text("no folder")
    assert loaded(storage).readable().longer.all()


MORE = [*ROWS, ("e.wav", "x", "train"), ("f.wav", "z", "train"), ("g.wav", "z", "test")]


def of_three_classes(folder, broken):
    """A task of three classes whose clips of these letters hold no sound."""
    storage = write_task(folder, MORE, seconds=[4.0 + clip for clip in range(len(MORE))])
    for name in broken:
        (folder / "tiny" / f"{name}.wav").write_bytes(b"no sound")
    return dataset.load(tiny_task(n_clips=7, n_classes=3), storage)


def test_clips_that_cannot_be_read_are_left_out_and_told(tmp_path, caplog):
    clips = of_three_classes(tmp_path, "a")
    with pytest.raises(DataError, match=r"tiny: 1 of 7 clips .*a\.wav.*--on-bad-file skip"):
        clips.readable("stop")
    rest = clips.readable("skip")
    assert rest.files == ("b.wav", "c.wav", "d.wav", "e.wav", "f.wav", "g.wav")
    assert rest.left_out == ("a.wav",)
    assert rest.labels.tolist() == [1, 0, 1, 0, 2, 2]
    assert rest.splits.tolist() == ["train", "valid", "test", "train", "train", "test"]
    assert rest.facts["n_clips"] == 6
    assert rest.fingerprint != clips.fingerprint
    (line,) = [record.getMessage() for record in caplog.records]
    assert "left out" in line
    assert "a.wav" in line


@pytest.mark.parametrize(("broken", "untrained"), [("f", "z"), ("ae", None), ("b", "y"), ("d", None)])
def test_what_makes_scores_doubtful_once_clips_are_left_out_is_said(tmp_path, caplog, broken, untrained):
    rest = of_three_classes(tmp_path, broken).readable("skip")
    lines = [record.getMessage() for record in caplog.records if "no clip of theirs trains" in record.getMessage()]
    assert lines == [f"tiny: 1 classes tested where no clip of theirs trains: {untrained} (test)."] * bool(untrained)
    assert list(rest.facts["warnings"]) == lines


@pytest.mark.parametrize("broken", ["abe", "bf", "aef"])
def test_one_class_that_is_left_to_train_is_an_error(tmp_path, broken):
    with pytest.raises(DataError, match=r"with the classes [xyz]; it takes clips of two classes or more"):
        of_three_classes(tmp_path, broken).readable("skip")


@pytest.mark.parametrize(("broken", "left"), [("d", "test"), ("cd", "test, valid"), ("abcd", "test, train, valid")])
def test_a_split_is_never_left_out_as_a_whole(storage, broken, left):
    for name in broken:
        (storage.data_root / "tiny" / f"{name}.wav").write_bytes(b"")
    with pytest.raises(DataError, match=rf"{len(broken)} of 4 clips cannot be read.*none is left of {left}\."):
        loaded(storage).readable("skip")


def test_a_file_that_may_not_be_read_is_a_fault(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (content,) = Contents(tmp_path).of(["folder.wav"])
    assert "folder.wav" in content.fault


def pack(path, waveform, rate=16000, title="", **settings):
    """A sound file, with a title among its tags where one is given."""
    channels = waveform.shape[1] if waveform.ndim == 2 else 1
    with soundfile.SoundFile(path, "w", rate, channels, **settings) as file:
        if title:
            file.title = title
        file.write(waveform)


def tagged(path, source):
    """The same MP3 behind an ID3v2 tag."""
    path.write_bytes(b"ID3\4\0\0\0\0\2\0" + bytes(256) + source.read_bytes())


NOISE = 0.2 * np.random.default_rng(0).standard_normal(12000)
STEREO = np.stack([NOISE, NOISE[::-1]], axis=1)


def contents_of(folder):
    """Contents of a and b, whose bytes differ."""
    first, second = Contents(folder).of(sorted(path.name for path in folder.iterdir()))
    assert first.digest != second.digest
    assert (first.fault, second.fault) == ("", "")
    return first, second


@pytest.mark.parametrize("waveform", [NOISE, STEREO, 5 * NOISE], ids=["mono", "stereo", "clipped"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize(("one", "other"), [("wav", "flac"), ("wav", "aiff"), ("flac", "wav"), ("aiff", "caf")])
def test_the_same_sound_in_another_format_is_a_copy(tmp_path, waveform, subtype, one, other):
    pack(tmp_path / f"a.{one}", waveform, subtype=subtype)
    decoded, _ = soundfile.read(tmp_path / f"a.{one}")
    pack(tmp_path / f"b.{other}", decoded, subtype=subtype)
    first, second = contents_of(tmp_path)
    assert first.sound == second.sound


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff"])
def test_the_same_sound_with_other_tags_is_a_copy(tmp_path, suffix):
    for name in "ab":
        pack(tmp_path / f"{name}.{suffix}", STEREO, title=f"the sound {name}")
    first, second = contents_of(tmp_path)
    assert first.sound == second.sound


def test_the_same_mp3_with_other_tags_is_a_copy(tmp_path):
    pack(tmp_path / "a.mp3", NOISE)
    tagged(tmp_path / "b.mp3", tmp_path / "a.mp3")
    first, second = contents_of(tmp_path)
    assert first.sound == second.sound


def test_16_bits_in_wider_samples_or_in_two_like_channels_are_a_copy(tmp_path):
    pack(tmp_path / "a.wav", NOISE)
    decoded, _ = soundfile.read(tmp_path / "a.wav")
    pack(tmp_path / "b.flac", decoded, subtype="PCM_24")
    pack(tmp_path / "c.wav", decoded, subtype="FLOAT")
    pack(tmp_path / "d.wav", np.stack([decoded, decoded], axis=1), subtype="DOUBLE")
    assert len({content.sound for content in Contents(tmp_path).of(["a.wav", "b.flac", "c.wav", "d.wav"])}) == 1


def test_another_sound_of_equal_length_is_no_copy(tmp_path):
    changed = NOISE.copy()
    changed[-1] += 2**-14
    pack(tmp_path / "a.wav", NOISE)
    pack(tmp_path / "rate.wav", NOISE, rate=8000)
    for name, waveform in {"last": changed, "back": NOISE[::-1], "sign": -NOISE, "loud": 2 * NOISE}.items():
        pack(tmp_path / f"{name}.wav", waveform)
    names = ["a.wav", "rate.wav", "last.wav", "back.wav", "sign.wav", "loud.wav"]
    assert len({content.sound for content in Contents(tmp_path).of(names)}) == len(names)


def test_a_copy_in_another_format_is_told(storage):
    root = storage.data_root / "tiny"
    for name, waveform in {"a.wav": NOISE, "b.wav": -NOISE, "c.wav": NOISE / 2, "d.flac": NOISE[::-1]}.items():
        pack(root / name, waveform)
    (root / "index.csv").write_text((root / "index.csv").read_text().replace("d.wav", "d.flac"))
    assert loaded(storage).warnings == ()
    pack(root / "d.flac", soundfile.read(root / "a.wav")[0])
    (warning,) = loaded(storage).facts["warnings"]
    assert warning.endswith(": a.wav = d.flac (train, test).")


def test_a_long_file_is_read_in_little_memory(tmp_path, monkeypatch):
    pack(tmp_path / "a.wav", np.zeros(40000), rate=8000)
    monkeypatch.setattr(audio, "_memory", lambda: 3 * 4 * 10_000)
    (content,) = Contents(tmp_path).of(["a.wav"])
    assert (content.seconds, content.fault) == (5.0, "")


@pytest.mark.parametrize("cached", [{"digest": "0" * 64, "seconds": 1.0, "fault": ""}])
def test_what_an_older_version_remembered_is_read_anew(storage, settled, cached):
    before = loaded(storage).fingerprint
    (memory,) = storage.cache_root.rglob("contents/*")
    facts = json.loads(read_checked(memory))
    older = {file: {"mark": entry["mark"], "content": cached} for file, entry in facts["files"].items()}
    write_checked(memory, json.dumps({"reader": facts["reader"][:2], "files": older}).encode())
    assert loaded(storage).fingerprint == before


VERBS = {
    "linear": "linear --model none --tasks TASK",
    "finetune": "finetune --model none --tasks TASK --out OUT",
    "pretrain": "pretrain --data none --recipe debug --tasks TASK --out OUT",
    "evar export": "evar export TASK --output OUT",
    "tasks check": "tasks check TASK",
}


@pytest.mark.parametrize("format_", ["evar", "hear"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_remembers_durations_in_the_cache_that_was_named(tmp_path, settled, monkeypatch, verb, format_):
    monkeypatch.setenv("M2D_BENCH_CACHE", str(tmp_path / "default"))
    monkeypatch.chdir(tmp_path)
    if format_ == "evar":
        task = test_index.evar(tmp_path / "data")
    else:
        task = f"hear:{test_hear.write_hear(tmp_path / 'data', test_hear.OFFICIAL, clips=4, sample_duration=None)}"
    main([*VERBS[verb].replace("TASK", task).replace("OUT", "out").split(), "--cache", "named"])
    assert list((tmp_path / "named" / "contents").iterdir())
    assert not (tmp_path / "default").exists()
