"""Data sets are downloaded in the forms they are published in, and nothing that goes wrong on the way does harm."""

import hashlib
import importlib
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from m2d_bench import archives, tasks
from m2d_bench.cli import main
from m2d_bench.tasks import download
from tests.conftest import write_tones
from tests.file_server import Server, disk, full_disk, serving, with_flag, zip_of
from tests.tasks.test_published import LAYOUTS, fitted, write_clips, write_text

NOWHERE = "http://127.0.0.1:9"


def tar_of(entries, mode="w:gz"):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as file:
        for name, content in entries.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content) if isinstance(content, bytes) else member.size
            file.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return archive.getvalue()


def split_zip(entries, count):
    """A zip file split as `zip -s` does it: places are told from the start of the file they lie in."""
    archive = bytearray(b"PK\7\x08" + zip_of(entries))
    end, size = archive.rfind(b"PK\5\6"), -(-len(archive) // count)
    at = directory = struct.unpack_from("<L", archive, end + 16)[0] + 4
    while archive[at : at + 4] == b"PK\1\2":
        place = struct.unpack_from("<L", archive, at + 42)[0] + 4
        struct.pack_into("<H", archive, at + 34, place // size)
        struct.pack_into("<L", archive, at + 42, place % size)
        at += 46 + sum(struct.unpack_from("<3H", archive, at + 28))
    struct.pack_into("<2H", archive, end + 4, count - 1, directory // size)
    struct.pack_into("<L", archive, end + 16, directory % size)
    return [bytes(archive[start : start + size]) for start in range(0, len(archive), size)]


def esc50(data):
    write_tones(data / "ESC-50-master", "meta/esc50.csv", clips=100)
    return {str(clip): (f"tone{clip % 10}", str(1 + clip // 10 % 5)) for clip in range(100)}


def us8k(data):
    clips = {
        f"audio/fold{fold}/{fold}-{label}.wav": (label, str(fold)) for fold in range(1, 11) for label in ("a", "b")
    }
    lines = [f"{os.path.basename(file)},{fold},{label}" for file, (label, fold) in clips.items()]
    write_text(data / "UrbanSound8K/metadata/UrbanSound8K.csv", "slice_file_name,fold,class", *lines)
    write_clips(data / "UrbanSound8K", clips)
    return clips


TOPS = {
    "esc50": "ESC-50-33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6",
    "us8k": "UrbanSound8K",
    "spcv1": ".",
    "spcv2": ".",
    "gtzan": "genres",
    "nsynth": "",
    "surge": "surge",
    "fsd50k": "",
    "fsdnoisy18k": "",
    "vocalsound": "",
    "icbhi2017": "ICBHI_final_database",
    "sprsound": "SPRSound-45b0d5d435ff320c46585762fa1090afd0ebb318",
}
"""Tasks whose whole data set can be downloaded, and the folder that their archives hold."""


def publish(monkeypatch, name, folder, address):
    """Puts the data set in a folder on the server in the form of its archives; the task's addresses lead there."""
    module = importlib.import_module(f"m2d_bench.tasks.{name}")
    lists = {str(part) for part in module.TASK.parts if not archive_of(part)}
    served, parts = {}, []
    for part in module.TASK.parts:
        names = [os.path.basename(url).split("?")[0] for url in part.files]
        if archive_of(part):
            alone = len(module.TASK.parts) == 1 + len(lists)
            entries = {
                f"{TOPS[name]}/{file}".lstrip("/"): (folder / file).read_bytes()
                for file in (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*")))
                if (folder / file).is_file() and file not in lists and (alone or file.startswith(f"{part}/"))
            }
            entries |= {f"{TOPS[name]}/._junk".lstrip("/"): b"", "__MACOSX/._junk": b""}
            packed = split_zip(entries, len(names)) if len(names) > 1 else [pack(names[0], entries)]
        else:
            packed = [(folder / str(part)).read_bytes()]
        served |= dict(zip(names, packed, strict=True))
        files = {
            f"{address}/{os.path.basename(url)}": known and checksum(known.split(":")[0], served[file])
            for file, (url, known) in zip(names, part.files.items(), strict=True)
        }
        parts.append(replace(part, files=files))
    monkeypatch.setattr(module, "TASK", replace(module.TASK, parts=tuple(parts)))
    Server.content = served


def archive_of(part):
    return [url for url in part.files if url.split("?")[0].endswith(archives.SUFFIXES)]


def pack(name, entries):
    if name.endswith(".zip"):
        return zip_of(entries)
    return tar_of(entries, {".gz": "w:gz", ".tar": "w"}[os.path.splitext(name)[1]])


def checksum(algorithm, content):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


@pytest.fixture
def address():
    with serving() as address:
        yield address


@pytest.fixture
def published(tmp_path, monkeypatch, address):
    """fsdnoisy18k on the server: three zip files with checksums."""
    fitted(monkeypatch, "fsdnoisy18k", LAYOUTS["fsdnoisy18k"](tmp_path / "published"))
    publish(monkeypatch, "fsdnoisy18k", tmp_path / "published" / "FSDnoisy18k", address)
    return dict(Server.content)


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a command on the data folder; its exit code, and what it says on stdout and stderr."""

    def run(*words):
        code = main(["tasks", *words, "--data", str(tmp_path / "data")])
        return code, *capsys.readouterr()

    return run


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", TOPS)
def test_a_published_archive_becomes_a_data_set_that_is_found(tmp_path, monkeypatch, address, command, name):
    clips = {"esc50": esc50, "us8k": us8k, **LAYOUTS}[name](tmp_path / "published")
    fitted(monkeypatch, name, clips)
    (folder,) = (tmp_path / "published").iterdir()
    publish(monkeypatch, name, folder, address)
    code, out, err = command("download", name)
    assert (code, "ERROR" in err) == (0, False)
    data = Path(out.removeprefix(f"{name}: ").strip())
    assert files_of(data) == files_of(folder)
    assert command("check", name)[0] == 0
    requests = len(Server.ranges)
    assert command("download", name)[:2] == (0, out)
    assert len(Server.ranges) == requests == len(Server.content)


def test_the_published_sets_say_where_they_are_and_their_checksums_are_ones():
    for name in {*tasks.NAMES} - {*tasks.BUILT_IN}:
        task = tasks.get(name)
        assert task.parts, name
        for part in task.parts:
            assert bool(part.files) != bool(part.manual), name
            for url, known in part.files.items():
                assert re.match(r"https?://[\w.-]+/", url)
                assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", known)
            if part.files and not archive_of(part):
                assert os.path.basename(next(iter(part.files))) == str(part)


def test_a_download_that_broke_off_is_continued(command, published):
    Server.limit = 1000
    code, _, err = command("download", "fsdnoisy18k")
    assert code == 1
    assert re.search(r"run again to go on|cannot be downloaded", err)
    Server.limit = None
    assert command("download", "fsdnoisy18k")[0] == 0
    assert Server.ranges == [None, "bytes=1000-", None, None]
    assert command("check", "fsdnoisy18k")[0] == 0


@pytest.mark.parametrize("blind", [False, True])
def test_a_file_that_changed_between_two_attempts_is_downloaded_anew(tmp_path, command, published, blind):
    Server.content = {name: content[::-1] for name, content in published.items()}
    Server.limit, Server.version = 1000, '"1"'
    assert command("download", "fsdnoisy18k")[0] == 1
    Server.content, Server.limit, Server.version, Server.blind = published, None, '"2"', blind
    assert command("download", "fsdnoisy18k")[0] == 0
    assert Server.ranges == [None, "bytes=1000-", *([None] if blind else []), None, None]


def test_a_file_with_another_checksum_is_removed_and_said(tmp_path, command, published):
    Server.content = {name: zip_of({"other": b"content"}) for name in published}
    code, _, err = command("download", "fsdnoisy18k")
    assert code == 1
    assert re.search(r"audio_train\.zip: its MD5 is \w+, expected is \w+\. The download was removed, try again", err)
    assert files_of(tmp_path / "data") == {".FSDnoisy18k.lock"}
    Server.content = published
    assert command("download", "fsdnoisy18k")[0] == 0


def linked_zip(mode):
    link = zipfile.ZipInfo("datafiles/te.json")
    link.external_attr = mode << 16
    return zip_of({link: b"../../secret"})


def tar_entry(kind, name="datafiles/te.json"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "../../secret"
    return tar_of({name: member})


GOOD = {"datafiles/te.json": b"{}"}
SOUND = zip_of(GOOD)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((zip_of({**GOOD, name: b""}), "leads out of the folder") for name in ("../x", "a/../../x", "/x", "C:\\x")),
        *((zip_of({**GOOD, name: b""}), "leads out of the folder") for name in ("a\\..\\..\\x", "\\x", "//server/x")),
        *((linked_zip(mode), "is a link or a device") for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)),
        (with_flag(SOUND, (6, 8), 1), "encrypted"),
        (with_flag(SOUND, (22, 24), 3 << 30, size=4), "unpacks to 3221225472 bytes"),
        (SOUND.replace(b"{}", b"[]", 1), "CRC"),
        (SOUND[:-30], "not a whole zip"),
        (b"<html>too many requests</html>", "not a whole zip"),
        (zip_of({"other/te.json": b""}), "holds no datafiles/te.json"),
        (zip_of({**GOOD, "a": b"", "a/b": b""}), "cannot be unpacked"),
    ],
    ids=count(),  # archives hold the time they were made
)
def test_what_a_zip_file_must_not_hold_is_said_and_nothing_of_it_stays(
    tmp_path, monkeypatch, address, command, content, words
):
    refused(tmp_path, monkeypatch, address, command, content, words, "vs_release_16k.zip?dl=1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((tar_of({**GOOD, name: b""}), "leads out of the folder") for name in ("../x", "/x")),
        *(
            (tar_entry(kind), "is a link or a device")
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
        ),
        (tar_of({str(number): b"" for number in range(3)}), "unpacks to 1610612736 bytes or more"),
        (tar_of({"datafiles/te.json": os.urandom(9999)})[:-5000], "not a whole tar"),
        (b"<html>too many requests</html>", "not a whole tar"),
    ],
    ids=count(),  # archives hold the time they were made
)
def test_what_a_tar_file_must_not_hold_is_said_and_nothing_of_it_stays(
    tmp_path, monkeypatch, address, command, content, words
):
    monkeypatch.setattr(archives, "_LEAST", 1 << 29)
    refused(tmp_path, monkeypatch, address, command, content, words, "vs_release_16k.tar.gz")


def refused(tmp_path, monkeypatch, address, command, content, words, file):
    """The archive is refused in these words, and after a good one in its place the data set is there."""
    module = importlib.import_module("m2d_bench.tasks.vocalsound")
    part = replace(module.TASK.parts[0], files={f"{address}/{file}": ""})
    monkeypatch.setattr(module, "TASK", replace(module.TASK, parts=(part,)))
    Server.content = content
    code, _, err = command("download", "vocalsound")
    assert code == 1
    assert words in err
    assert "The download was removed, try again" in err
    assert files_of(tmp_path) == {"data/.vs_release_16k.lock"}
    Server.content = pack(file.split("?")[0], GOOD)
    assert command("download", "vocalsound")[0] == 0
    assert files_of(tmp_path) == {"data/.vs_release_16k.lock", "data/vs_release_16k/datafiles/te.json"}


@pytest.mark.parametrize("step", ["downloading", "unpacking"])
def test_room_is_looked_for_before_anything_is_written(tmp_path, monkeypatch, command, published, step):
    with monkeypatch.context() as full:
        there = tmp_path / "data" / "FSDnoisy18k" / "FSDnoisy18k.audio_train.zip"
        full.setattr(shutil, "disk_usage", lambda _: disk(0 if step == "downloading" or there.exists() else 1 << 30))
        code, _, err = command("download", "fsdnoisy18k")
    assert code == 1
    assert re.search(
        r"FSDnoisy18k: the disk is full, 0\.0 MiB .* are to be written\. .* another folder with --data", err
    )
    assert files_of(tmp_path / "data" / "FSDnoisy18k") == ({there.name} if step == "unpacking" else set())
    assert command("download", "fsdnoisy18k")[0] == 0
    assert len(Server.ranges) == (4 if step == "downloading" else 3)


def test_a_disk_that_becomes_full_keeps_what_came(tmp_path, monkeypatch, command, published):
    with monkeypatch.context() as full:
        full.setattr(Path, "open", full_disk(Path.open))
        code, _, err = command("download", "fsdnoisy18k")
    assert (code, "the disk is full" in err) == (1, True)
    assert command("download", "fsdnoisy18k")[0] == 0


def test_without_network_address_and_folder_are_named_and_a_file_put_there_is_taken(
    tmp_path, monkeypatch, command, published
):
    publish(monkeypatch, "fsdnoisy18k", tmp_path / "published" / "FSDnoisy18k", NOWHERE)
    code, _, err = command("download", "fsdnoisy18k")
    folder = tmp_path / "data" / "FSDnoisy18k"
    assert code == 1
    assert f"{NOWHERE}/FSDnoisy18k.audio_train.zip cannot be downloaded into {folder}" in err
    assert "Without a network, fetch it elsewhere, put it there as it is and run this again." in err
    for name, content in Server.content.items():
        (folder / name).write_bytes(content)
    assert command("download", "fsdnoisy18k")[0] == 0
    assert command("check", "fsdnoisy18k")[0] == 0


def test_what_is_there_is_left_as_it_is_and_only_the_rest_is_downloaded(tmp_path, command, published):
    usual = tmp_path / "data" / "fsdnoisy18k"
    shutil.copytree(tmp_path / "published" / "FSDnoisy18k", usual)
    shutil.rmtree(usual / "FSDnoisy18k.meta")
    (usual / "FSDnoisy18k.meta").mkdir()
    archive = usual / "FSDnoisy18k.audio_train.zip"
    archive.write_bytes(b"kept by its owner")
    before = {path: path.stat().st_mtime_ns for path in usual.rglob("*.wav")}
    code, out, _ = command("download", "fsdnoisy18k")
    assert (code, out.strip()) == (0, f"fsdnoisy18k: {usual}")
    assert len(Server.ranges) == 1
    assert {path: path.stat().st_mtime_ns for path in usual.rglob("*.wav")} == before
    assert archive.read_bytes() == b"kept by its owner"


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_download_that_was_killed_while_it_was_moved_into_place_is_completed(
    tmp_path, monkeypatch, address, command, moves
):
    fitted(monkeypatch, "us8k", us8k(tmp_path / "published"))
    publish(monkeypatch, "us8k", tmp_path / "published" / "UrbanSound8K", address)
    with monkeypatch.context() as killed:
        done = []

        def replace_some(source, target):
            if ".unpacked" in str(source) and len(done) == moves:
                raise KeyboardInterrupt
            done.extend([target] if ".unpacked" in str(source) else [])
            rename(source, target)

        rename = os.replace
        killed.setattr(download.os, "replace", replace_some)
        assert command("download", "us8k")[0] == (130 if moves < 2 else 0)
    if moves == 1:
        with monkeypatch.context() as full:
            full.setattr(shutil, "disk_usage", lambda _: disk(0))
            assert command("download", "us8k")[0] == 1
    assert command("download", "us8k")[0] == 0
    assert files_of(tmp_path / "data" / "UrbanSound8K") == files_of(tmp_path / "published" / "UrbanSound8K")
    assert len(Server.ranges) == 1


def test_the_list_is_downloaded_where_a_form_keeps_the_recordings(tmp_path, monkeypatch, address, command):
    module, content = importlib.import_module("m2d_bench.tasks.vc1"), b"1 id10001/a/00001.wav\n"
    files = {f"{address}/iden_split.txt": checksum("sha256", content)}
    parts = (replace(module.TASK.parts[0], files=files), module.TASK.parts[1])
    monkeypatch.setattr(module, "TASK", replace(module.TASK, parts=parts))
    Server.content = content
    folder = tmp_path / "data" / "VoxCeleb1"
    for _ in range(2):
        code, _, err = command("download", "vc1")
        assert code == 1
        assert f"vc1: {folder} lacks the recordings. Get the recordings from https://www.robots.ox.ac.uk" in err
    assert (folder / "iden_split.txt").read_bytes() == content
    assert len(Server.ranges) == 1


def test_a_task_that_fails_does_not_keep_others_from_being_downloaded(tmp_path, command, published):
    code, out, err = command("download", "events,cremad", "fsdnoisy18k")
    assert (code, out.strip()) == (1, f"fsdnoisy18k: {tmp_path / 'data' / 'FSDnoisy18k'}")
    assert "events: there is nothing to download" in err
    folder = tmp_path / "data" / "CREMA-D"
    assert f"cremad: {folder} lacks AudioWAV. Get AudioWAV from https://github.com/CheyneyComputerScience" in err


def test_the_folder_has_to_be_named_and_the_task_be_one(capsys):
    assert main(["tasks", "download", "esc50"]) == 2
    assert "--data DIR" in capsys.readouterr().err
    assert main(["tasks", "download", "ecs50", "--data", "."]) == 2
    assert "Did you mean esc50" in capsys.readouterr().err


def test_the_list_says_what_is_missing(tmp_path, command):
    LAYOUTS["gtzan"](tmp_path / "data")
    LAYOUTS["vc1"](tmp_path / "data")
    (tmp_path / "data" / "genres" / "test_filtered.txt").unlink()
    shutil.rmtree(tmp_path / "data" / "vox1" / "vox1_dev_wav")
    shutil.rmtree(tmp_path / "data" / "vox1" / "vox1_test_wav")
    lines = {line.split()[0]: line for line in command()[1].splitlines() if line}
    assert lines["gtzan"].endswith(f"{tmp_path / 'data' / 'genres'}, lacks test_filtered.txt")
    assert lines["vc1"].endswith(f"{tmp_path / 'data' / 'vox1'}, lacks the recordings")


def test_a_data_set_that_cannot_be_looked_at_does_not_stop_the_list(tmp_path, monkeypatch, command):
    LAYOUTS["gtzan"](tmp_path / "data")
    is_file = Path.is_file

    def denied(path):
        if path.name == "UrbanSound8K.csv":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", denied)
    code, out, _ = command()
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert lines["us8k"].endswith(
        "cannot be looked for: " + f"{tmp_path}/data/UrbanSound8K/metadata/UrbanSound8K.csv: Permission denied."
    )
    assert lines["gtzan"].endswith(str(tmp_path / "data" / "genres"))
