"""Our classes and settings in a clone of EVAR: for one run, installed, and removed byte for byte."""

import subprocess
import sys

import pytest

from m2d_bench.cli import main
from m2d_bench.errors import DataError
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
    found = m2d_bench("--evar", evar, "2pass_lineareval", "m2d_s_bench", "us8k", WEIGHTS, folder=tmp_path)
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
        (["--evar", "{evar}", "lineareval"], "which settings"),
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
        *(
            f"config/{name}.yaml"
            for name in ("encoder_bench", "m2d_bench", "m2d_s_bench", "m2d_as_bench", "msm_mae_bench")
        ),
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
