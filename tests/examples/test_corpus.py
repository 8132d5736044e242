"""The corpus of the model that ships: what is left out, what is cut, and what a second call does."""

import csv
import os
import re
import runpy
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2d_bench.pretrain.data import shards

SCRIPT = Path(__file__).parents[2] / "examples" / "corpus" / "build.py"
RATE = 16000


def noise(seconds, seed):
    return np.random.default_rng(seed).integers(-3000, 3000, round(seconds * RATE), np.int16)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What was made of two packages, words and a track, that are unpacked already; and a clip of an evaluation."""
    folder = tmp_path_factory.mktemp("corpus")
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
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, waveform, RATE)
    (folder / "packages/words/usr/share/broken.ogg").write_bytes(b"OggS nothing more")
    build(folder)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(built, tmp_path / "copy")


def build(folder, packages=("words", "track"), more=()):
    words = ["--not-in", str(folder / "evaluation"), "--tasks", "--cache", str(folder), "--minutes", "0.1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["build.py", str(folder), "--packages", *packages, *words, "--seconds", "1", *more])
        runpy.run_path(str(SCRIPT), run_name="__main__")


def program(folder, name, script):
    """A program of that name, for a PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def sources(folder):
    with (folder / "sources.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


def written(folder):
    """Bytes and time of every clip."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "clips").rglob("*.flac")}


def test_corpus_holds_each_sound_once_and_none_of_an_evaluation(built):
    words, track = sources(built)
    left_out = {"unreadable": "1", "short": "1", "copies": "2", "evaluated": "1", "silent": "1"}
    assert words.items() >= {"package": "words", "files": "2", **left_out}.items()
    assert track.items() >= {"package": "track", "files": "1", "copies": "1", "silent": "0"}.items()
    one, two = (soundfile.read(path, dtype="int16")[0] for path in sorted((built / "clips/words").iterdir()))
    assert (len(one), len(two)) == (RATE, RATE / 2)
    assert np.array_equal(np.concatenate([one, two]), np.concatenate([noise(0.7, 0), noise(0.8, 1)]))  # without a gap
    assert len([*(built / "clips/track").iterdir()]) == 6  # seconds, a tenth of a minute
    assert shards.Index.read(built / "log_mels").n_clips == 8


def test_corpus_killed_goes_on_where_it_was(folder, capsys):
    table, before = (folder / "sources.csv").read_text(), written(folder)
    (folder / "sources.csv").write_text("".join(table.splitlines(keepends=True)[:2]))  # killed in the second package
    (folder / "clips/track/00009.flac").write_bytes(b"half a clip")
    build(folder)
    assert (folder / "sources.csv").read_text() == table
    assert "8 clips" in capsys.readouterr().out
    assert {path: content for path, (content, _) in written(folder).items()} == {
        path: content for path, (content, _) in before.items()
    }
    assert {path for path, facts in written(folder).items() if facts == before[path]} == {
        path for path in before if path.parent.name == "words"
    }


def test_packages_are_added_and_compared_with_those_before(folder):
    (folder / "packages/more").mkdir()
    for name, waveform in {"new.wav": noise(1, 5), "a.wav": noise(0.7, 0)}.items():
        soundfile.write(folder / "packages/more" / name, waveform, RATE)
    build(folder, ["more", "more"])
    *_, row = rows = sources(folder)
    assert len(rows) == 3
    assert row.items() >= {"package": "more", "files": "1", "copies": "1"}.items()
    assert shards.Index.read(folder / "log_mels").n_clips == 9


@pytest.mark.parametrize(
    ("packages", "more", "says"),
    [
        (["{folder}/evaluation"], [], "is no name of a package"),
        (["words"], ["--seconds", "0"], "--seconds: '0' is not a number such as 10, or is less than 0.1 seconds"),
        (["words"], ["--seconds", "ten"], "--seconds: 'ten' is not a number such as 10"),
        (["words"], ["--minutes", "abc"], "--minutes: 'abc' is not a number such as 10"),
        (["words"], ["--minutes", "0.001"], "--minutes: '0.001' is not a number such as 10, or is less than 0.1 sec"),
        (["words"], ["--minutes", "inf"], "--minutes: 'inf' is not a number"),
        (["words"], ["--minutes", "0.05"], "was begun with"),  # three seconds
        (["words"], ["--seconds", "2"], "was begun with"),
        (["words"], ["--not-in", "{folder}/nowhere"], "nowhere: does not exist. Name the folder"),
        (["words"], ["--not-in", "{folder}/evaluation/clip.wav"], "clip.wav: is a file. Name the folder"),
        (["words"], ["--not-in", "{folder}/log_mels"], "log_mels: no sound files there. Name the folder"),
        (["words"], ["--not-in", "{folder}/packages/track"], "was begun with"),
        (["words"], ["--tasks", "evnets"], "Did you mean events"),
    ],
)
def test_misuse_is_said_and_changes_nothing(folder, packages, more, says, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    with pytest.raises(SystemExit) as raised:
        build(folder, *([word.format(folder=folder) for word in words] for words in (packages, more)))
    assert says in f"{raised.value} {capsys.readouterr().err}"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before


@pytest.mark.parametrize("names", [["part"], ["evaluation"]])
def test_evaluation_that_cannot_be_listed_is_refused(folder, unlistable, names):
    (folder / "evaluation/part").mkdir()
    unlistable(*names)
    with pytest.raises(SystemExit, match=rf"{names[0]}\S*: cannot be listed \(Permission denied\)"):
        build(folder)


def test_files_of_an_evaluation_that_are_no_sound_by_their_suffix_are_said(folder, caplog):
    (folder / "evaluation/clip.m4a").touch()
    build(folder)
    assert "evaluation: files left out, no sound by their suffix: 1 .m4a" in caplog.text


@pytest.mark.parametrize(("done", "outcome"), [(2, "left out"), (3, "its clips stay")])
def test_package_that_cannot_be_fetched_is_said(folder, monkeypatch, capsys, done, outcome):
    program(folder / "bin", "apt-get", "exit 100")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    rows = (folder / "sources.csv").read_text().splitlines(keepends=True)
    (folder / "sources.csv").write_text("".join(rows[:done]))
    shutil.rmtree(folder / "packages" / "track")
    build(folder)
    assert f"track: cannot be fetched; {outcome}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("apt_get", "dpkg_deb", "says"),
    [
        ("exit 100", "", "apt-get download ended with status 100 and 0 .deb files"),
        ("exit 0", "", "apt-get download ended with status 0 and 0 .deb files"),
        ("touch bad_1.deb bad_2.deb", "", "apt-get download ended with status 0 and 2 .deb files"),
        ("touch bad_1.deb", "exit 2", "bad_1.deb: dpkg-deb cannot unpack it."),
        ("touch bad_1.deb", 'echo no zip > "$3/data.pk3"', "data.pk3: not a whole zip file"),
        ("touch bad_1.deb", 'cp "$BROKEN" "$3/data.pk3"', "data.pk3: not a whole zip file"),
        ("touch bad_1.deb", 'ln -s nowhere "$3/data.pk3"', "data.pk3: not a whole zip file"),
    ],
)
def test_package_with_a_broken_archive_is_left_out_and_said(folder, monkeypatch, capsys, apt_get, dpkg_deb, says):
    broken = folder / "broken.zip"
    with zipfile.ZipFile(broken, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("new.txt", "sound " * 1000)
    broken.write_bytes(broken.read_bytes()[:45] + b"\xff" * 8 + broken.read_bytes()[53:])  # in what is compressed
    program(folder / "bin", "apt-get", apt_get)
    program(folder / "bin", "dpkg-deb", dpkg_deb)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BROKEN", str(broken))
    table = sources(folder)
    (folder / "sources.csv").unlink()
    for _ in range(2):
        build(folder, ["words", "bad", "track"])
        assert re.search(rf"^bad: cannot be fetched; left out\. .*{says}", capsys.readouterr().err, re.MULTILINE)
        assert {path.name for path in (folder / "packages").iterdir()} == {"words", "track"}
        assert sources(folder) == table


def test_corpus_of_nothing_and_a_system_without_apt_are_said(tmp_path, monkeypatch):
    (tmp_path / "evaluation").mkdir()
    soundfile.write(tmp_path / "evaluation/clip.wav", noise(0.6, 3), RATE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="apt-get: No such file"):
        build(tmp_path)
    program(tmp_path, "apt-get", "exit 100")
    with pytest.raises(SystemExit, match="no package could be fetched"):
        build(tmp_path)
