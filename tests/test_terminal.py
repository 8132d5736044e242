"""Every text reaches every terminal, and none steers it."""

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m2d_bench import terminal
from m2d_bench.cli import main
from m2d_bench.errors import DataError, describe
from m2d_bench.output import csv_text
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import naming, replacing
from tests.test_runs import RUN

TEXT = "esc10 accuracy ↑ 90.00 ± 1.00 ¹ −2 – é 音"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-2", "koi8-r", "cp437", "shift_jis", "utf-8"])
def test_what_an_encoding_lacks_is_written_in_ascii(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.open_streams()
    terminal.say(TEXT, sys.stdout)
    written = stream.buffer.getvalue().decode(encoding)
    assert written.startswith("esc10 accuracy ")
    if encoding == "ascii":
        assert written == "esc10 accuracy ^ 90.00 +- 1.00 #1 -2 - \\u00e9 \\u97f3\n"
    if encoding == "utf-8":
        assert written == TEXT + "\n"


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202egnp", "\x7f", "\udcff"])
def test_names_do_not_steer_the_terminal(name):
    shown = terminal.printable(f"dög\t{name}\n")
    assert shown.isprintable() or all(letter.isprintable() or letter in "\t\n" for letter in shown)
    assert shown.startswith("dög\t")
    assert "\\" in shown


def test_cells_that_a_spreadsheet_would_compute_are_defused():
    cells = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "＝1", "-0.5", "+1e3", "−0.5", "a=b", -2, None]
    text = csv_text(["name"], [[cell] for cell in cells])
    assert text.splitlines()[1:] == [
        *("'=1+1", "'+cmd|' /C calc'!A0", "'-2+3", "'@SUM(A1)", "'＝1", "-0.5", "+1e3", "−0.5", "a=b", "-2", '""')
    ]


@needs_full
@pytest.mark.parametrize("words", [["table", "--list"], ["--help"]])
def test_a_full_disk_behind_stdout_is_one_line(words):
    command = [sys.executable, "-m", "m2d_bench.cli", *words]
    with FULL.open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_closed_streams_are_no_error(closed, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, closed, None)
    assert main(["table", "--list"]) == 0
    assert main(["table", "--runs", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("columns", ["0", "1", "3", "many"])
def test_any_width_of_terminal_will_do(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["--help"]) == 0
    assert main(["table", "--bogus"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["1", "60"])
def test_help_ends_on_narrow_terminals(columns):
    command = [sys.executable, "-m", "m2d_bench.cli", "linear", "--help"]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": columns}, capture_output=True, text=True, timeout=120)
    assert "--learning-rate" in done.stdout


@needs_full
@pytest.mark.parametrize("write", [lambda file: torch.save(torch.zeros(100_000), file), lambda file: file.write(b"x")])
def test_a_full_disk_names_the_file(write):
    with (
        pytest.raises(OSError, match=r"out/resume\.pt") as caught,
        naming(Path("out/resume.pt")),
        FULL.open("wb") as file,
    ):
        write(file)
    assert caught.value.errno == errno.ENOSPC
    assert describe(caught.value) == (
        "out/resume.pt: No space left on device. Free some space there, or name another folder."
    )
    assert "esc10 failed: out/resume.pt: No space" in str(TasksFailed({"esc10": caught.value}, [RUN]))


def full(file):
    file.write(bytes(2**20))
    file.flush()
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_torch(file):
    try:
        full(file)
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0") from None


def full_of_other_files(file):
    os.unlink(file.name)
    full(file)


@pytest.mark.parametrize(("write", "room"), [(full, "3.0"), (full_in_torch, "3.0"), (full_of_other_files, "2.0")])
def test_a_file_that_does_not_fit_is_named_with_the_room_there_was(tmp_path, monkeypatch, write, room):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 2**21))
    with pytest.raises(OSError, match="out/resume") as caught, replacing(tmp_path / "out/resume.pt") as file:
        write(file)
    assert describe(caught.value) == (
        f"{tmp_path}/out/resume.pt: No space left on device: it needs more than the {room} MiB that are free. "
        "Free some space there, or name another folder."
    )
    assert not os.listdir(tmp_path / "out")


def test_only_failed_writes_are_renamed(tmp_path):
    with pytest.raises(RuntimeError, match="loss"), replacing(tmp_path / "a"):
        raise RuntimeError("loss")
    with pytest.raises(FileNotFoundError, match="nowhere"), replacing(tmp_path / "a"):
        (tmp_path / "nowhere").read_bytes()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("fold"), "ERROR: KeyError: 'fold'. This is a bug of m2d-bench; run it again with --verbose"),
        (ZeroDivisionError("a\nb"), "ERROR: ZeroDivisionError: a b. This is a bug"),
        (MemoryError(), "ERROR: Out of memory"),
        (DataError("esc10: no clips."), "ERROR: esc10: no clips."),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "ERROR: runs: Permission denied."),
    ],
)
def test_errors_are_one_line_and_verbose_shows_where(error, said, monkeypatch, capsys):
    def read(folder):
        raise error

    monkeypatch.setattr("m2d_bench.runs.read", read)
    assert main(["runs", "list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert len(err.splitlines()) == 1
    for words in (["runs", "list", "--verbose"], ["--verbose", "runs", "list"]):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert said in err


@pytest.mark.parametrize(("verb", "kept"), [("runs", False), ("embed", False), ("prepare", True), ("finetune", True)])
def test_an_interruption_promises_only_what_a_verb_keeps(verb, kept, monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("m2d_bench.cli._run", interrupted)
    assert main([verb]) == 130
    assert ("is kept" in capsys.readouterr().err) == kept
