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

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "corpus" / "build.py"
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


def contents(folder):
    """Bytes of every clip."""
    return {path: content for path, (content, _) in written(folder).items()}


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
    assert contents(folder) == {path: content for path, (content, _) in before.items()}
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


@pytest.mark.parametrize("lost", ["clips/words", "clips/words/00000.flac", "clips/track/00005.flac", "clips"])
@pytest.mark.parametrize("prepared", [True, False])
def test_package_that_lost_clips_is_cut_again(folder, lost, prepared):
    before, table = contents(folder), sources(folder)
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    if not prepared:
        shutil.rmtree(folder / "log_mels")
    build(folder)
    assert (contents(folder), sources(folder)) == (before, table)
    assert shards.Index.read(folder / "log_mels").n_clips == 8


def test_clips_that_are_lost_for_good_are_said(folder, monkeypatch, capsys):
    for name in ("packages/track", "clips/track", "log_mels"):
        shutil.rmtree(folder / name)
    program(folder / "bin", "apt-get", "exit 100")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    with pytest.raises(SystemExit, match="clips/track: 0 of 6 clips are there; track: apt-get download ended"):
        build(folder)


def test_clips_of_a_package_without_a_row_are_said(folder):
    (folder / "sources.csv").write_text("".join((folder / "sources.csv").read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(SystemExit, match=r"clips/track: has no row in sources.csv\. Add track to --packages"):
        build(folder, ["words"])
    for name in ("clips/track", "log_mels"):  # as is said
        shutil.rmtree(folder / name)
    build(folder, ["words"])
    assert [row["package"] for row in sources(folder)] == ["words"]


@pytest.mark.parametrize(("damaged", "size"), [("words/00000.flac", 9000), ("track/00003.flac", 0)])
def test_damaged_clips_are_named_until_they_are_cut_again(folder, damaged, size, capsys):
    before = contents(folder)
    os.truncate(folder / "clips" / damaged, size)
    shutil.rmtree(folder / "log_mels")
    for _ in range(2):
        with pytest.raises(SystemExit) as raised:
            build(folder)
        assert re.search(rf"1 by failures.csv there:\n{damaged}: .*\nDelete the folders", str(raised.value))
    assert "all" not in capsys.readouterr().out
    shutil.rmtree((folder / "clips" / damaged).parent)
    build(folder)
    assert contents(folder) == before
    assert shards.Index.read(folder / "log_mels").n_clips == 8


def test_clips_of_a_package_that_was_killed_are_not_taken_for_all_of_it(folder, monkeypatch):
    (folder / "packages/more").mkdir()
    soundfile.write(folder / "packages/more/new.wav", noise(3, 5), RATE)

    def killed(path, *rest, **options):
        write(path, *rest, **options)
        if path.name == "00001.flac":
            raise KeyboardInterrupt

    write = soundfile.write
    monkeypatch.setattr(soundfile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        build(folder, ["more"])
    monkeypatch.undo()
    build(folder)
    assert shards.Index.read(folder / "log_mels").n_clips == 8
    build(folder, ["more"])
    assert shards.Index.read(folder / "log_mels").n_clips == 11


@pytest.mark.parametrize(
    "tail",
    [
        "track,music",
        "track,,,1,0,0,1,0,0,6",
        "track,,,1,0,0,1,0,0,6,",
        "words,,,1,0,0,1,0,0,6,0.00",
        "track,,,1,0,0,1,0,0,six,0.00",
        "track,,,1,0,0,1,0,0,6.5,0.00",
        "track,,,1,0,0,1,0,0,6,0.00,words",
        ",,,1,0,0,1,0,0,6,0.00",
        "../evaluation,,,1,0,0,1,0,0,6,0.00",
        "\0\0\0\0",
    ],
)
def test_damaged_table_is_said_and_nothing_is_changed(folder, tail):
    rows = (folder / "sources.csv").read_text().splitlines(keepends=True)
    (folder / "sources.csv").write_text("".join([*rows[:2], tail]))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    with pytest.raises(SystemExit, match=r"sources.csv: is damaged \(.*\)\. Delete it and start again"):
        build(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before


def test_damaged_table_can_be_deleted(folder):
    before, table = contents(folder), sources(folder)
    (folder / "sources.csv").unlink()
    build(folder)
    assert (contents(folder), sources(folder)) == (before, table)


def test_table_is_written_whole_or_not_at_all(folder, monkeypatch):
    table = (folder / "sources.csv").read_bytes()
    (folder / "packages/more").mkdir()
    soundfile.write(folder / "packages/more/new.wav", noise(1, 5), RATE)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match="No space left"):
        build(folder, ["more"])
    assert (folder / "sources.csv").read_bytes() == table


@pytest.mark.parametrize("column", ["clips", "package"])
def test_table_without_a_column_is_damaged(folder, column):
    table = folder / "sources.csv"
    table.write_text(table.read_text().replace(column, "other", 1))
    with pytest.raises(SystemExit, match=r"sources.csv: is damaged \(row 1\)"):
        build(folder)


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def test_table_that_is_printed_ends_with_sums(folder, capsys):
    build(folder)
    header, _, *rows, total = cells(capsys.readouterr().out)
    assert [dict(zip(header, row, strict=True)) for row in rows] == sources(folder)
    assert total == ["**all**", "", "", "3", "1", "1", "3", "1", "1", "8", "0.00"]


def test_table_of_the_guide_is_the_one_that_is_printed():
    page = (ROOT / "docs/pretrain.md").read_text().split("What it prints at the end")[1].split("Debian 12")[0]
    header, _, *rows, total = cells(page)
    script = runpy.run_path(str(SCRIPT))
    assert header == script["COLUMNS"]
    printed = cells(script["render"]([dict(zip(header, row, strict=True)) for row in rows]))
    assert [printed[0], *printed[2:]] == [header, *rows, total]
    kinds = {row["package"]: row for row in script["read_table"](script["PACKAGES"])}
    assert {package: (kind, licence) for package, kind, licence, *_ in rows} == {
        package: (row["kind"], row["licence"]) for package, row in kinds.items()
    }


def test_package_that_cannot_be_fetched_again_keeps_its_clips(folder, monkeypatch, capsys):
    program(folder / "bin", "apt-get", "exit 100")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    before = contents(folder)
    shutil.rmtree(folder / "packages" / "track")
    build(folder)
    assert "track: cannot be fetched; its clips stay." in capsys.readouterr().err
    assert contents(folder) == before


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
        with pytest.raises(SystemExit, match=f"^ERROR: bad: left out. .*{says}"):
            build(folder, ["words", "bad", "track"])
        assert "8 clips in " in capsys.readouterr().out
        assert {path.name for path in (folder / "packages").iterdir()} == {"words", "track"}
        assert sources(folder) == table


def test_corpus_of_nothing_and_a_system_without_apt_are_said(tmp_path, monkeypatch):
    (tmp_path / "evaluation").mkdir()
    soundfile.write(tmp_path / "evaluation/clip.wav", noise(0.6, 3), RATE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="apt-get: No such file"):
        build(tmp_path)
    program(tmp_path, "apt-get", "exit 100")
    with pytest.raises(SystemExit, match=r"there is no package to cut\.\n.*: left out\. apt-get download"):
        build(tmp_path)
