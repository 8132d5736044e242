"""The command line: tables on stdout, the rest on stderr, exit codes that mean something."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2d_bench import runs
from m2d_bench.cli import VERBS, main
from m2d_bench.errors import DataError, UsageError
from m2d_bench.runs import TasksFailed
from tests.results.test_overview import built_in, headings

ROOT = Path(__file__).parent.parent
MODEL = "random:m2d_vit_tiny-80x208p16x16"


def run(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def options(tmp_path, tones, small_model):
    return [
        "--model",
        small_model,
        "--data",
        tones,
        "--runs",
        tmp_path / "runs",
        "--seeds",
        2,
        "--epochs",
        3,
        "--precision",
        "fp32",
    ]


def test_help_names_every_verb(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)


def test_linear_prints_one_table(capsys, options):
    code, out, err = run(capsys, "linear", "--tasks", "esc10", *options)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("small ")
    assert " ± " in lines[2]


@pytest.mark.parametrize(
    ("words", "models"),
    [
        ("", ["m2d_tiny", "random:m2d_tiny", "logmel"]),
        ("--model own.py:Own --probe knn", ["own.py:Own", "m2d_tiny", "logmel"]),
        ("--model logmel --runs else/where", ["logmel", "m2d_tiny"]),
        ("--model logmel --tasks events", None),
        ("--model m2d_tiny --pooling max", None),
        ("--baseline logmel", None),
    ],
)
def test_the_built_in_tasks_are_shown_beside_references(capsys, monkeypatch, words, models):
    def linear(model, names, settings, baseline):
        records = [run for run in built_in(model, 0.5) if run.task["name"] in names]
        raise TasksFailed({"gm_pitch": DataError("no pretty_midi")}, records[:2])

    monkeypatch.setattr("m2d_bench.evaluation.linear.linear", linear)
    code, out, err = run(capsys, "linear", *words.split())
    assert code == 1
    assert err == "ERROR: gm_pitch failed: no pretty_midi\n"
    if models is None:
        assert "chance" not in out
        return
    assert headings(out.splitlines())[1:] == [*models, "chance"]
    folder, named = ("else/where", " else/where") if "--runs" in words else ("runs", "")
    line = f"Records: {folder}. Next: m2d-bench report{named}; linear --model own.py:Own --tasks DIR"
    assert out.endswith(f"\n{line}\n")
    assert len(line) <= 80 or named
    assert "Records" not in run(capsys, "linear", *words.split(), "--format", "md")[1]


def test_a_model_that_no_task_can_be_done_with_is_not_replaced_by_references(capsys, monkeypatch):
    asked = []

    def linear(model, names, settings, baseline):
        asked.append(model)
        raise TasksFailed(dict.fromkeys(names, UsageError("no digest")), [])

    monkeypatch.setattr("m2d_bench.evaluation.linear.linear", linear)
    code, out, err = run(capsys, "linear", "--model", "own.py:Own")
    assert (code, out, asked) == (1, "", ["own.py:Own"])
    assert err.endswith("failed: no digest\n")


@pytest.mark.parametrize("style", ["md", "csv", "json", "latex", "html"])
def test_formats(capsys, options, style):
    code, out, _ = run(capsys, "linear", "--tasks", "esc10", "--format", style, *options)
    assert code == 0
    assert "esc10" in out
    if style == "json":
        assert json.loads(out)[0]["n"] == 2


def test_a_failed_task_is_named_last_with_exit_code_1(capsys, options):
    for words in (["us8k,esc10"], ["us8k", "esc10"]):
        code, out, err = run(capsys, "linear", "--tasks", *words, *options)
        assert code == 1
        assert "esc10" in out
        assert "ERROR: us8k failed: us8k: not found." in err.splitlines()[-1]


@pytest.mark.parametrize("inside", ["", "folder"])
@pytest.mark.parametrize(
    "words",
    [
        ["linear", "--model", MODEL],
        ["finetune", "--model", MODEL, "--tasks", "events,gm_pitch", "--recipe", "esc50"],
        ["embed", "clip.wav", "-o", "out.npz", "--model", "m2d_vit_base-80x608p16x16-221006-mr7"],
        ["tasks", "check", "events"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_cache_that_cannot_be_made_is_said_once_before_any_work(capsys, tmp_path, monkeypatch, words, inside):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    cache, why = Path("file", inside), "Not a directory" if inside else "File exists"
    refusal = (2, "", f"ERROR: --cache {cache}: cannot be made ({why}). Name another folder.\n")
    assert run(capsys, *words, "--cache", cache) == refusal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linear", "--tasks", "ecs50"], "Did you mean esc50"),
        (["linear", "--taks", "esc50"], "--tasks"),
        (["linear", "--seeds", "many"], "many"),
        (["linear", "--seeds", "until=-1"], "seeds is 'until=-1'; it is a number of runs from 1, or until= and"),
        (["linear", "--epochs", "0"], 'Invalid value "0" for --epochs. It should be greater than 0.'),
        (["linear", "--format", "xml"], "xml"),
        (["linear", "--model", "m2d_tyni"], "Did you mean m2d_tiny"),
        (["linear", "--device", "gpu", "--model", MODEL], "'gpu' cannot be used"),
        (["models", "show", "nothing"], "Unknown model"),
        (["liner"], "liner"),
    ],
)
def test_bad_usage_has_exit_code_2_and_a_message(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not out


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept(tmp_path, tones):
    command = f"-m m2d_bench.cli linear --model {MODEL} --tasks esc10 --data {tones} --seeds 500 --runs {tmp_path}"
    process = subprocess.Popen(
        [sys.executable, *command.split()],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not list(tmp_path.rglob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "What was finished is kept" in err
    assert "Traceback" not in err
    (path,) = tmp_path.rglob("*.json")
    assert runs.load(path).done(5)


def test_models_and_tasks_are_listed(capsys):
    code, out, _ = run(capsys, "models")
    assert code == 0
    for name in ("m2d_tiny", "m2d_s_vit_base-80x608p80x2-230220", "random:NAME"):
        assert name in out
    code, out, _ = run(capsys, "tasks")
    assert code == 0
    for name in ("esc50", "us8k", "gm_family", "synthetic"):
        assert name in out


def test_models_show_says_configuration_digest_and_what_was_read(capsys):
    code, out, _ = run(capsys, "models", "show", ROOT / "tests/golden/m2d_vit_base-80x208p16x16-golden")
    facts = json.loads(out)
    assert code == 0
    assert facts["config"]["vit"]["patch_size"] == [16, 16]
    assert facts["read"]["encoder"] == 42
    assert len(facts["digest"]) == 16


def test_embed_writes_what_it_can_and_names_what_it_cannot(capsys, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(16000), 16000)
    (tmp_path / "b.wav").write_bytes(b"x")
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    code, out, err = run(capsys, "embed", *files, "-o", tmp_path / "out.npz", "--model", MODEL)
    assert code == 1
    assert "1 embeddings of 960" in out
    assert "b.wav" in err
    assert np.load(tmp_path / "out.npz")["embeddings"].shape == (1, 960)


def test_verbose_shows_where_the_error_of_each_single_file_comes_from(capsys, caplog, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(16000), 16000)
    soundfile.write(tmp_path / "loud.wav", 1e30 * np.ones(16000), 16000, "DOUBLE")
    (tmp_path / "broken.wav").write_bytes(b"x")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:9000])
    words = ["embed", tmp_path, tmp_path / "gone.wav", "-o", tmp_path / "out.npz", "--model", MODEL]
    code, _, err = run(capsys, *words)
    assert (code, err.count("ERROR: "), "Traceback" in caplog.text) == (1, 4, False)
    code, _, err = run(capsys, *words, "--verbose")
    assert (code, err.count("ERROR: ")) == (1, 4)
    traced = [record.getMessage() for record in caplog.records if record.exc_info]
    assert sorted(traced) == sorted(line.removeprefix("ERROR: ") for line in err.splitlines() if "ERROR: " in line)


def test_embed_names_a_folder_that_cannot_be_listed_and_embeds_the_others(capsys, tmp_path, unlistable):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "x.wav", 0.1 * np.ones(16000), 16000)
    unlistable("b", "c")
    words = ("embed", tmp_path, tmp_path / "c", "-o", tmp_path / "out.npz", "--model", MODEL)
    code, out, err = run(capsys, *words)
    assert code == 1
    assert "1 embeddings of 960" in out
    assert err.count("cannot be listed (Permission denied)") == 3
    assert "no sound files" not in err


def test_embed_refuses_an_unknown_suffix_before_any_work(capsys, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.ones(16000), 16000)
    monkeypatch.setattr("m2d_bench.encoders.zoo.load", None)  # not even the model is read
    code, _, err = run(capsys, "embed", tmp_path / "a.wav", "-o", tmp_path / "out.csv", "--model", MODEL)
    assert code == 2
    assert ".npz or .parquet" in err
