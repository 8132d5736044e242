"""`tasks check` tells what data hold and finds what is wrong with them, of every kind of task."""

import pytest

from m2d_bench.cli import main
from tests.tasks.test_hear import OFFICIAL, write_hear
from tests.tasks.test_index import evar
from tests.tasks.test_own import CLASSES, ROWS, write_clip, write_folder, write_table


def check(capsys, *words):
    code = main(["tasks", "check", *map(str, words)])
    return code, *capsys.readouterr()


def test_a_check_tells_what_was_found(tmp_path, capsys, caplog):
    folder = tmp_path / "birds"
    for split, files in {"train": 3, "test": 1}.items():
        for name in CLASSES:
            for i in range(files):
                write_clip(folder / split / name / f"{split}{name}{i}.wav", seconds=0.5 if i else 1.0)
    write_clip(folder / "train" / "owl" / "more.flac", rate=8000, channels=2, seconds=1.0)
    code, out, _ = check(capsys, folder)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"own:birds: {folder}, files below {folder}"
    assert lines[1] == "2 classes of 4 (wren) to 5 (owl) clips; accuracy"
    assert lines[2].startswith("sample rates: 16000 Hz (8), 8000 Hz (1); channels: 1 (8), 2 (1); cut or padded")
    assert lines[2].endswith("cut or padded to 0.778 s (mean of the clips)")
    assert lines[4].split() == ["split", "clips", "classes", "hours", "shortest", "s", "mean", "s", "longest", "s"]
    assert lines[6].split() == ["test", "2", "2", "0.001", "1.000", "1.000", "1.000"]
    assert lines[8].split()[:3] == ["all", "9", "2"]
    assert "1 classes of fewer than 5 clips: wren (4)" in caplog.text


def test_a_check_names_all_that_is_wrong(tmp_path, capsys):
    rows = [*ROWS, "gone.wav,owl,train", "copy.wav,owl,train", "broken.wav,owl,train", "8.wav,owl,"]
    path = write_table(tmp_path / "birds.csv", rows)
    (tmp_path / "gone.wav").unlink()
    (tmp_path / "copy.wav").write_bytes((tmp_path / "7.wav").read_bytes())
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    code, out, err = check(capsys, path)
    assert code == 1
    assert "(columns file_name, label, split)" in out
    errors = [line for line in err.splitlines() if line.startswith("ERROR")]
    for number, said in enumerate(
        [
            "1 clips have no fold or split: 8.wav",
            "the column split holds",
            "1 of 12 files of the index are missing",
            "broken.wav: cannot be decoded",
            "1 sounds in several splits, by name or with the same content; scores say too much: 7.wav = copy.wav",
        ]
    ):
        assert said in errors[number]


@pytest.mark.parametrize("kind", ["esc10", "evar", "hear", "own"])
def test_every_kind_of_task_is_checked(tmp_path, tones, capsys, kind):
    name = {
        "esc10": lambda: "esc10",
        "evar": lambda: evar(tmp_path / "data"),
        "hear": lambda: f"hear:{write_hear(tmp_path / 'data', OFFICIAL, clips=4)}",
        "own": lambda: write_folder(tmp_path / "data"),
    }[kind]()
    code, out, err = check(capsys, name, "--data", tones)
    assert (code, "ERROR" in err) == (0, False)
    assert out.splitlines()[-1].split()[:2] == ["all", {"esc10": "400"}.get(kind, "12")]


def test_a_wrong_count_of_a_published_set_is_an_error(tmp_path, tones, capsys):
    text = (tones / "esc10" / "meta" / "esc10.csv").read_text().splitlines()
    (tmp_path / "esc10" / "meta").mkdir(parents=True)
    (tmp_path / "esc10" / "meta" / "esc10.csv").write_text("\n".join(text[:-3]))
    (tmp_path / "esc10" / "audio").symlink_to(tones / "esc10" / "audio")
    code, out, err = check(capsys, "esc10", "--data", tmp_path)
    assert code == 1
    assert "holds 397 clips, the task has 400" in err
    assert out.splitlines()[-1].split()[:2] == ["all", "397"]


def test_nothing_there_is_an_error_that_says_where_to_look(tmp_path, capsys):
    code, out, err = check(capsys, "esc50", "--data", tmp_path)
    assert (code, out) == (1, "")
    assert "not found. Looked for" in err


def test_the_list_says_which_data_are_there(tones, capsys):
    assert main(["tasks", "--data", str(tones)]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["esc10"].endswith(str(tones / "esc10"))
    assert lines["us8k"].endswith("not here; from https://urbansounddataset.weebly.com/urbansound8k.html")
    assert {"FOLDER", "FILE.csv", "hear:PATH"} <= {*lines}
