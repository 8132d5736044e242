"""Synthetic tasks in the cache appear whole or not at all, and what was damaged there is made anew, never scored."""

import errno
import os

import numpy as np
import pytest
import soundfile

from m2d_bench.errors import StorageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset
from m2d_bench.tasks.synthetic import scene
from m2d_bench.tasks.task import Folds
from tests.tasks.test_dataset import tiny_task

TASK = tiny_task(layouts=(), generator="m2d_bench.tasks.synthetic.scene:four", folds=Folds(column="fold", count=2))


@pytest.fixture
def made(monkeypatch):
    """Clips of TASK, and how often its generator was called."""
    clips = [scene.Clip(np.full(8000, i / 9, np.float32), "xxyy"[i], i % 2) for i in range(4)]
    calls = []
    monkeypatch.setattr(scene, "four", lambda: calls.append(1) or clips, raising=False)
    return calls


@pytest.fixture
def stored(tmp_path, made):
    """TASK in the cache tmp_path."""
    return dataset.load(TASK, Storage(cache=tmp_path))


def refused(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def zero(root):
    path = root / "audio" / "00001.wav"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:44] + bytes(16000))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(root):
    path = root / "audio" / "00001.wav"
    path.write_bytes(path.read_bytes()[:9000])


def exchange(root):
    first, second = root / "audio" / "00001.wav", root / "audio" / "00002.wav"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def remove(root):
    (root / "audio" / "00001.wav").unlink()


def relabel(root):
    path = root / "index.csv"
    path.write_text(path.read_text().replace("00001.wav,x", "00001.wav,y").replace("00002.wav,y", "00002.wav,x"))


def empty_the_index(root):
    (root / "index.csv").write_bytes(b"")


def empty_the_folder(root):
    for path in (root / "audio").iterdir():
        path.unlink()


def spoil_the_manifest(root):
    path = root.with_name(f"{root.name}.json")
    path.write_bytes(path.read_bytes().replace(b"a", b"b"))


def remove_the_manifest(root):
    root.with_name(f"{root.name}.json").unlink()


DAMAGE = {
    zero: "1 files .*: audio/00001.wav",
    cut: "1 files .*: audio/00001.wav",
    exchange: "2 files .*: audio/00001.wav, audio/00002.wav",
    remove: "1 files .*: audio/00001.wav",
    relabel: "1 files .*: index.csv",
    empty_the_index: "1 files .*: index.csv",
    empty_the_folder: "4 files .*: audio/00000.wav, .*, audio/00003.wav",
    spoil_the_manifest: "1 files .*: tiny-v1.json",
    remove_the_manifest: "1 files .*: tiny-v1.json",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__)
def test_a_damaged_task_is_generated_anew_and_that_is_said_once(tmp_path, made, stored, caplog, damage):
    damage(stored.root)
    for _ in range(2):
        again = dataset.load(TASK, Storage(cache=tmp_path))
        assert again.fingerprint == stored.fingerprint
        assert again.readable().files == stored.files
    assert len(made) == 2
    (message,) = caplog.messages
    with pytest.raises(ValueError, match=rf"tiny-v1: {DAMAGE[damage]}\. The task must be generated anew\.$"):
        raise ValueError(message)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__)
def test_a_damaged_task_in_a_cache_that_cannot_be_written_is_an_error(tmp_path, stored, monkeypatch, caplog, damage):
    damage(stored.root)
    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    with pytest.raises(StorageError, match=r"cannot be written.*--cache"):
        dataset.load(TASK, Storage(cache=tmp_path))
    assert "missing or not as generated" in caplog.text


def test_a_task_is_read_from_a_cache_that_cannot_be_written(tmp_path, made, stored, monkeypatch):
    assert soundfile.info(stored.root / stored.files[3]).subtype == "PCM_16"
    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    monkeypatch.setattr("m2d_bench.tasks.generated.FileLock", refused)
    assert dataset.load(TASK, Storage(cache=tmp_path)).fingerprint == stored.fingerprint
    assert len(made) == 1


@pytest.mark.parametrize("step", ["os.replace", "shutil.rmtree", "m2d_bench.tasks.generated.write_checked"])
def test_a_making_anew_that_was_killed_is_done_again(tmp_path, stored, monkeypatch, step):
    def killed(*_, **__):
        raise KeyboardInterrupt

    zero(stored.root)
    with monkeypatch.context() as patched:
        patched.setattr(step, killed)
        with pytest.raises(KeyboardInterrupt):
            dataset.load(TASK, Storage(cache=tmp_path))
    assert dataset.load(TASK, Storage(cache=tmp_path)).fingerprint == stored.fingerprint


def test_a_task_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def clips():
        yield scene.Clip(np.zeros(100, np.float32), "x", 1)
        raise RuntimeError("killed")

    monkeypatch.setattr(scene, "four", clips, raising=False)
    with pytest.raises(RuntimeError, match="killed"):
        dataset.load(TASK, Storage(cache=tmp_path))
    assert not (tmp_path / "tasks" / "tiny-v1").exists()


@pytest.mark.parametrize(("refusal", "why"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")])
def test_a_task_says_where_there_is_no_room_for_it(tmp_path, made, monkeypatch, refusal, why):
    def refuse(*_):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(StorageError, match=rf"{tmp_path}: .*{why}.*0\.2 MiB.*--cache"):
        dataset.load(TASK, Storage(cache=tmp_path))
