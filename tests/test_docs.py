"""What README and the guides say can be typed, can be typed."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2d_bench import runs
from m2d_bench.cli import build, main
from m2d_bench.results.overview import overview
from tests.results.result_records import record
from tests.results.test_classes import run_of_classes
from tests.results.test_folders import keep

ROOT = Path(__file__).parent.parent
CARD = "m2d_bench/encoders/m2d_tiny/MODEL_CARD.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    for page in PAGES:
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            yield page.name, block


COMMANDS = [
    pytest.param(shlex.split(line.split("m2d-bench ", 1)[1]) if "m2d-bench " in line else [], id=f"{page}: {line}")
    for page, block in blocks("console")
    for line in (text[2:].split("  #")[0] for text in block.splitlines() if text.startswith("$ "))
    if re.search(r"(^|&& )m2d-bench ", line)
]
NEEDS_DATA = r"--data (?!task:)|embed |predict |hear:|superb|xares|^results|evar|mteb|/mnt/|/path/|docs/records"
RECORDS = ROOT / "docs" / "records"
OF_RECORDS = [p for p in COMMANDS if "docs/records" in p.values[0]]
PYTHON = [(page, block, re.match(r"# (\w+\.py)\n", block)) for page, block in blocks("python")]
SCRIPTS = [pytest.param(block, id=page) for page, block, file in PYTHON if not file]
FILES = {file[1]: block for _, block, file in PYTHON if file}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_of_the_guides_is_understood(words):
    command, _bound, ignored = build().parse_args(words, exit_on_error=False, print_error=True)
    assert callable(command)
    assert not ignored


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [p for p in COMMANDS if not re.search(NEEDS_DATA, " ".join(p.values[0]))],
)
def test_commands_that_need_no_data_set_run(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    if words == ["linear"]:  # minutes
        words = [*words, "--seeds", "1", "--epochs", "2"]
    if words[0] in ("table", "plot", "report", "runs"):
        write_runs(tmp_path / "runs", predictions="bootstrap" in words)
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", OF_RECORDS)
def test_what_is_printed_of_the_records_is_what_they_say(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert any(printed in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize(
    ("page", "protocol", "style"),
    [("README.md", "linear", "text"), (CARD, "linear", "md"), (CARD, "logreg", "md")],
)
def test_the_first_table_is_that_of_the_records(page, protocol, style):
    records = [run for run in runs.read(RECORDS)[0].values() if run.protocol == protocol and run.task["synthetic"]]
    models = ("m2d_tiny", "random:m2d_tiny", "logmel")
    shown = [run for model in models for run in records if run.encoder["name"] == model]
    assert len(shown) == 3 * 6
    assert overview(shown, style) in (ROOT / page).read_text(encoding="utf-8")


def write_runs(folder, predictions):
    """Records of the models that the guides speak of; predictions of one of the papers' two, or of both."""
    for name in ("m2d_vit_base-80x608p16x16-221006-mr7", "msm_mae_vit_base-80x608p16x16-220924-mr75"):
        for task in ("esc50", "us8k", "gtzan"):
            run = record(name, task, 0.8, train_fraction=1.0)
            run = replace(run, scores=tuple(replace(score, score=1.0) for score in run.scores))
            runs.add(run, folder)
            if task == "esc50" and (predictions or name.startswith("m2d_")):
                for score in run.scores:
                    keep(run, folder, score.seed, score.fold)
    runs.add(record("m2d_vit_base-80x608p16x16-221006-mr7", "us8k", 0.7, train_fraction=0.1), folder)
    runs.add(record("own.py:Own", "us8k", 0.6), folder)
    runs.add(run_of_classes("fsd50k"), folder)
    for layer in (1, 2):
        model = "m2d_vit_base-80x608p16x16-221006-mr7"
        runs.add(record(model, "gtzan", layer / 4, layer=layer, pooling="mean"), folder)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_python_of_the_guides_runs(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "m2d_bench" in script
    exec(script, {"waveform": np.zeros(16000, dtype=np.float32)})
