"""Files that are looked for by the listing of their folders."""

import os
from pathlib import Path

import pytest

from m2d_bench.files import missing_files

FILES = ["b/x.wav", "x.wav", "b/c/x.wav", "no/x.wav", "b/no.wav", "x.wav", "b//x.wav", "b/../x.wav", "b", "b/no.wav"]


def made(folder):
    for file in ("x.wav", "b/x.wav", "b/c/x.wav"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def test_files_are_missing_that_are_no_file(tmp_path):
    (made(tmp_path) / "link.wav").symlink_to("x.wav")
    (tmp_path / "broken.wav").symlink_to("nothing")
    files = [*FILES, "link.wav", "broken.wav", str(tmp_path / "x.wav"), str(tmp_path / "y.wav")]
    wanted = [file for file in files if not (tmp_path / file).is_file()]
    assert missing_files(tmp_path, files) == wanted
    assert len(wanted) == 6


def test_files_of_a_folder_that_cannot_be_listed_are_looked_up(tmp_path, unlistable):
    unlistable("b")
    assert missing_files(made(tmp_path), FILES) == ["no/x.wav", "b/no.wav", "b", "b/no.wav"]


def test_files_that_are_there_are_not_looked_up_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: pytest.fail(f"{path} is looked up"))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert missing_files(made(tmp_path), ["b/x.wav", "x.wav", "b/c/x.wav"] * 3) == []
    assert len(listed) == 3
