"""Our classes and settings in a clone of EVAR: for one run, installed, and removed byte for byte."""

import subprocess
import sys
from types import ModuleType

import pytest

from m2d_bench.cli import main
from m2d_bench.encoders import zoo
from m2d_bench.errors import DataError, M2DBenchError
from m2d_bench.evar_adapters import clone
from tests.evar_adapters.evar_clone import snapshot, write_clone

WEIGHTS = "weight_file=random:m2d_vit_tiny-80x208p16x16"


@pytest.fixture
def evar(tmp_path):
    return write_clone(tmp_path / "evar")


def m2d_bench(*words, folder):
    command = [sys.executable, "-m", "m2d_bench.cli", "evar", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "weights", "size"),
    [("m2d_bench", WEIGHTS, 960), ("encoder_bench.yaml", "weight_file={folder}/own.py:Loudness", 2)],
)
def test_a_script_runs_with_our_classes_and_the_clone_stays_untouched(evar, encoder_folder, config, weights, size):
    before, weights = snapshot(evar), weights.format(folder=encoder_folder)
    words = ["--evar", evar, "lineareval", config, "esc50", weights, "--seed=7"]
    found = m2d_bench(*words, folder=encoder_folder)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"lineareval ['esc50', '{weights}', '--seed=7'] (2, {size}) {size}\n"
    assert snapshot(evar) == before


@pytest.mark.slow
def test_two_passes_start_the_script_with_our_classes_too(evar, tmp_path):
    before = snapshot(evar)
    found = m2d_bench("--evar", evar, "2pass_lineareval", "m2d_s_bench", "esc50", WEIGHTS, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert [line.split("'")[5] for line in found.stdout.splitlines()] == ["--seed=42", "--seed=43"]
    assert snapshot(evar) == before


@pytest.mark.slow
def test_the_clones_own_settings_and_scripts_run(evar, tmp_path):
    found = m2d_bench("--evar", evar, "finetune", "m2d", "esc50", "--lr", "1.0", folder=tmp_path)
    assert found.stdout == "finetune ['esc50', '--lr', '1.0']\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--evar", "{evar}", "linear", "m2d_bench", "esc50"], "Unknown script 'linear'. Did you mean lineareval"),
        (["--evar", "{evar}", "zeroshot", "m2d_bench", "esc50"], "no text encoder: it is out of scope"),
        (["--evar", "{evar}", "retr_a2t_t2a.py", "m2d_bench", "clotho"], "no text encoder: it is out of scope"),
        (["--evar", "{evar}", "lineareval"], "which settings and task"),
        (["--evar", "{evar}", "lineareval", "m2d_bench"], "which settings and task"),
        (["--evar", "{evar}", "finetune", "m2d_bench", "esc5O"], "Unknown task 'esc5O'. Did you mean esc50"),
        (["--evar", "{evar}", "finetune", "m2d_bench", "us8k"], "/evar/metadata/us8k.csv and "),
        (["--evar", "{evar}", "finetune", "m2d_bench", "us8k"], "m2d-bench evar export us8k --data DIR -o "),
        (["--evar", "{evar}", "lineareval", "m2d_32k_bench", "esc50"], "/work/32k/ESC: not there"),
        (["--evar", "{evar}", "lineareval", "encoder_bench", "esc50", "sample_rate=44100"], "/work/44k/ESC: not there"),
        (["--evar", "{evar}", "lineareval", "m2d_bensh", "esc50"], "Did you mean m2d_bench"),
        (
            ["--evar", "{evar}/config", "lineareval", "m2d_bench", "esc50"],
            "no clone of EVAR, it lacks evar/__init__.py",
        ),
        (["install", "{evar}/config"], "no clone of EVAR"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(words, says, evar, capsys):
    assert main(["evar", *(word.format(evar=evar) for word in words)]) in (1, 2)
    assert says in capsys.readouterr().err


@pytest.fixture
def started(monkeypatch):
    """What a script is started with."""
    words = []
    monkeypatch.setattr(clone, "run_script", lambda own, script, arguments: words.extend(arguments))
    return words


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("weight_file=ft/weights.pth", "weight_file={here}/ft/weights.pth"),
        ("batch_size=8,weight_file=ft,seed=1", "batch_size=8,weight_file={here}/ft,seed=1"),
        ("--options=weight_file=own.py:Own", "--options=weight_file={here}/own.py:Own"),
        ("weight_file=hear:own.py@ft/weights.pth", "weight_file=hear:{here}/own.py@{here}/ft/weights.pth"),
        ("--data_path=ft", "--data_path={here}/ft"),
        ("weight_file=random:m2d_tiny", "weight_file=random:m2d_tiny"),
        ("weight_file=m2d_tiny", "weight_file=m2d_tiny"),
        (f"weight_file={next(iter(zoo.RELEASED))}", f"weight_file={next(iter(zoo.RELEASED))}"),
        ("weight_file=gone.pth", "weight_file=gone.pth"),
    ],
)
def test_relative_paths_are_those_of_the_users_folder(evar, started, tmp_path, monkeypatch, word, found):
    monkeypatch.chdir(tmp_path)
    for name in ("ft", "random", "m2d_tiny", next(iter(zoo.RELEASED))):
        (tmp_path / name).mkdir()
    for name in ("ft/weights.pth", "own.py"):
        (tmp_path / name).touch()
    clone.run(evar, "finetune", ["m2d", "esc50", word, "--lr=1.0"])
    assert started == [str(evar / "config/m2d.yaml"), "esc50", found.format(here=tmp_path), "--lr=1.0"]


@pytest.mark.parametrize(
    ("config", "words", "found"),
    [
        ("m2d_s_bench", ["--lr=1.0"], ["--options=weight_file={here}/ft", "--lr=1.0"]),
        ("m2d_s_bench", ["batch_size=8", "--lr", "1.0"], ["batch_size=8,weight_file={here}/ft", "--lr", "1.0"]),
        ("m2d_s_bench", ["--lr=1", "--options=x=1"], ["--lr=1", "--options=x=1,weight_file={here}/ft"]),
        ("m2d_s_bench", ["weight_file=m2d_tiny"], ["weight_file=m2d_tiny"]),
        ("encoder_bench", [], ["--options=weight_file=m2d_tiny"]),
        ("m2d", [], []),
    ],
)
def test_evar_is_told_the_weights_that_settings_of_ours_leave_open(
    evar, started, tmp_path, monkeypatch, config, words, found
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ft").mkdir()
    monkeypatch.setenv("M2D_BENCH_WEIGHTS_M2D_S", "ft")
    clone.run(evar, "lineareval", [config, "esc50", *words])
    assert started[2:] == [word.format(here=tmp_path) for word in found]


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("evar.sampler", r"imports evar/sampler.py.* curl -L https://raw.*/for_evar/sampler.py -o evar/sampler.py"),
        ("no_such_package", r"imports no_such_package.*pip install 'm2d-bench\[evar\]'"),
    ],
)
def test_what_a_script_lacks_is_named_with_what_to_do(evar, monkeypatch, module, says):
    (evar / "finetune.py").write_text(f"import {module}\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "evar"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(clone, "import_module", lambda name: ModuleType(name))
    with pytest.raises(M2DBenchError, match=says):
        clone.run(evar, "finetune", ["m2d", "esc50"])
    monkeypatch.delitem(sys.modules, "evar", raising=False)
    monkeypatch.delitem(sys.modules, "evar.ar_m2d_bench", raising=False)


def test_a_script_that_fails_where_evar_starts_it_is_no_success():
    with pytest.raises(DataError, match="started failed"), clone._environment_of_scripts():
        subprocess.run(["python", "none.py"], stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("last_line", ["# EVAR\n", "", "# EVAR", "import os\n\n"])
def test_installing_twice_and_removing_leaves_the_clone_as_it_was(evar, last_line):
    (evar / "evar" / "__init__.py").write_text(last_line)
    before = snapshot(evar)
    clone.install(evar)
    once = snapshot(evar)
    clone.install(evar)
    assert snapshot(evar) == once
    assert {name for name in once if once[name] != before.get(name)} == {
        "evar/__init__.py",
        "evar/ar_m2d_bench.py",
        *(f"config/{name}_bench.yaml" for name in ("encoder", "m2d", "m2d_32k", "m2d_s", "m2d_as", "msm_mae")),
    }
    clone.uninstall(evar)
    assert snapshot(evar) == before
    assert clone.uninstall(evar) == []


@pytest.mark.slow
def test_installed_classes_run_in_the_clones_own_python(evar):
    clone.install(evar)
    command = [sys.executable, "lineareval.py", "config/m2d_bench.yaml", "esc50", WEIGHTS]
    found = subprocess.run(command, capture_output=True, text=True, cwd=evar, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("(2, 960) 960\n")


def test_foreign_and_changed_files_are_left_alone(evar):
    (evar / "config" / "m2d_bench.yaml").write_text("mine")
    before = snapshot(evar)
    with pytest.raises(DataError, match=r"m2d_bench\.yaml: there already"):
        clone.install(evar)
    assert snapshot(evar) == before
    (evar / "config" / "m2d_bench.yaml").unlink()
    clone.install(evar)
    (evar / "config" / "m2d_s_bench.yaml").write_text("changed")
    installed = snapshot(evar)
    with pytest.raises(DataError, match=r"m2d_s_bench\.yaml: changed since"):
        clone.uninstall(evar)
    assert snapshot(evar) == installed
