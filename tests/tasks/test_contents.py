"""Files are read to their end once; an edit is seen, and what cannot be decoded is named or left out."""

import os
import shutil

import pytest

from m2d_bench import audio
from m2d_bench.errors import DataError
from m2d_bench.settings import Storage
from m2d_bench.tasks import contents, dataset
from m2d_bench.tasks.contents import Contents
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
    monkeypatch.setattr(audio, "read", lambda path, *_: read.append(path.name))
    assert loaded(storage).fingerprint == before
    assert read == []
    flip(storage.data_root / "tiny" / "c.wav", 5000)
    assert loaded(storage).fingerprint != before
    assert read == ["c.wav"]


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


def test_clips_that_cannot_be_read_are_left_out_and_told(storage, caplog):
    (storage.data_root / "tiny" / "a.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"tiny: 1 of 4 clips .*a\.wav.*--on-bad-file skip"):
        loaded(storage).readable("stop")
    rest = loaded(storage).readable("skip")
    assert rest.files == ("b.wav", "c.wav", "d.wav")
    assert rest.left_out == ("a.wav",)
    assert rest.labels.tolist() == [1, 0, 1]
    assert rest.splits.tolist() == ["train", "valid", "test"]
    assert rest.facts["n_clips"] == 3
    assert rest.fingerprint != loaded(storage).fingerprint
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "a.wav" in line


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
