"""The corpus of the model that ships: what is left out, what is cut, and what a second call does."""

import csv
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2d_bench.pretrain.data import shards

SCRIPT = Path(__file__).parents[2] / "examples" / "corpus" / "build.py"
RATE = 16000


def noise(seconds, seed):
    return np.random.default_rng(seed).integers(-3000, 3000, round(seconds * RATE), np.int16)


@pytest.fixture
def folder(tmp_path):
    """Two packages as they are once unpacked: words and a track; and clips of an evaluation."""
    sounds = {
        "packages/words/usr/share/a.wav": noise(0.7, 0),
        "packages/words/usr/share/b.wav": noise(0.8, 1),
        "packages/words/usr/share/copy of a.wav": noise(0.7, 0),
        "packages/words/usr/share/same samples as a.flac": noise(0.7, 0),
        "packages/words/usr/share/silent.wav": np.zeros(RATE, np.int16),
        "packages/words/usr/share/click.wav": noise(0.05, 2),
        "packages/words/usr/share/evaluated.flac": noise(0.6, 3),
        "packages/track/music.flac": noise(10, 4),
        "packages/track/word.wav": noise(0.8, 1),
        "evaluation/clip.wav": noise(0.6, 3),
    }
    for name, waveform in sounds.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, waveform, RATE)
    (tmp_path / "packages/words/usr/share/broken.ogg").write_bytes(b"OggS nothing more")
    return tmp_path


def build(monkeypatch, folder):
    words = ["--packages", "words", "track", "--not-in", str(folder / "evaluation"), "--tasks", "--cache", str(folder)]
    monkeypatch.setattr(sys, "argv", ["build.py", str(folder), *words, "--minutes", "0.1", "--seconds", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def written(folder):
    """Bytes and time of every clip."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "clips").rglob("*.flac")}


def test_corpus_holds_each_sound_once_and_none_of_an_evaluation(folder, monkeypatch, capsys):
    build(monkeypatch, folder)
    with (folder / "sources.csv").open(newline="") as file:
        words, track = csv.DictReader(file)
    left_out = {"unreadable": "1", "short": "1", "copies": "2", "evaluated": "1", "silent": "1"}
    assert words.items() >= {"package": "words", "files": "2", **left_out}.items()
    assert track.items() >= {"package": "track", "files": "1", "copies": "1", "silent": "0"}.items()
    one, two = (soundfile.read(path, dtype="int16")[0] for path in sorted((folder / "clips/words").iterdir()))
    assert (len(one), len(two)) == (RATE, RATE / 2)
    assert np.array_equal(np.concatenate([one, two]), np.concatenate([noise(0.7, 0), noise(0.8, 1)]))  # without a gap
    assert len([*(folder / "clips/track").iterdir()]) == 6  # seconds, a tenth of a minute
    assert shards.Index.read(folder / "log_mels").n_clips == 8
    assert "8 clips" in capsys.readouterr().out


def test_corpus_killed_goes_on_where_it_was(folder, monkeypatch, capsys):
    build(monkeypatch, folder)
    table, before = (folder / "sources.csv").read_text(), written(folder)
    (folder / "sources.csv").write_text("".join(table.splitlines(keepends=True)[:2]))  # killed in the second package
    (folder / "clips/track/00009.flac").write_bytes(b"half a clip")
    shutil.rmtree(folder / "log_mels")
    build(monkeypatch, folder)
    assert (folder / "sources.csv").read_text() == table
    assert {path: content for path, (content, _) in written(folder).items()} == {
        path: content for path, (content, _) in before.items()
    }
    assert {path for path, facts in written(folder).items() if facts == before[path]} == {
        path for path in before if path.parent.name == "words"
    }


def test_package_that_is_not_there_is_said_and_left_out(folder, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(folder / "bin"))
    (folder / "bin").mkdir()
    fetcher = folder / "bin" / "apt-get"
    fetcher.write_text("#!/bin/sh\nexit 100\n")
    fetcher.chmod(0o755)
    (folder / "packages" / "track").rename(folder / "packages" / "elsewhere")
    build(monkeypatch, folder)
    output = capsys.readouterr()
    assert "track: cannot be fetched; left out." in output.err
    assert "words" in output.out
