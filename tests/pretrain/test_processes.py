"""Pre-training in two processes, of which one alone meets an error."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning_fabric")

from m2d_bench.encoders.vit import SIZES
from m2d_bench.errors import DataError, OtherProcessError
from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain import run, weights
from m2d_bench.pretrain.held_out import HeldOutMonitor
from m2d_bench.pretrain.inputs import Inputs
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.pretrain.run import RunSettings
from m2d_bench.training import loop
from m2d_bench.training.log import Log
from tests.pretrain.conftest import SMALLER
from tests.pretrain.test_trainer import METHODS, QUIET, SMALL
from tests.processes import assert_failed_together, fail_everywhere, in_two, under_torchrun

FAILURES = {
    "data": (1, run, "open_clips"),
    "measure": (0, run, "measure_norm_stats"),
    "config": (0, run, "_write_down"),
    "log": (0, Log, "__init__"),
    "record": (0, Log, "scalars"),
    "monitor": (0, HeldOutMonitor, "__init__"),
    "evaluate": (0, HeldOutMonitor, "evaluate"),
    "checkpoint": (0, weights, "save"),
    "state": (0, loop, "replacing"),
}


@pytest.mark.parametrize("failing", ["clips", "noise"])
def test_what_the_first_process_cannot_measure_ends_all(failing, monkeypatch):
    class Sound:
        norm_stats, skipped = None, {}

        def __init__(self, name):
            self.name = name

    def measure(source, workers):
        if source.name == failing:
            raise DataError("no sound")
        return (1.0, 2.0)

    monkeypatch.setattr(run, "measure_norm_stats", measure)
    inputs = Inputs(data="clips", noise="noise")
    first, other = in_two(lambda fabric: run._measure(fabric, inputs, Sound("clips"), Sound("noise"), {}, 0))
    assert type(first) is DataError
    assert str(first) == f"{'--data' if failing == 'clips' else '--noise'} {failing}: no sound"
    assert type(other) is OtherProcessError


@pytest.mark.slow
def test_whatever_fails_in_one_process_ends_both(tmp_path):
    for number in range(20):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).standard_normal((1, 80, 50), np.float32))
    (tmp_path / "clips.csv").write_text("\n".join(["file_name", *(f"{number}.npy" for number in range(20))]))
    under_torchrun("tests.pretrain.test_processes", tmp_path)
    assert_failed_together(FAILURES, tmp_path)


def _train(root, name):
    """One step, and a look at held-out clips where that fails."""
    recipe = recipes.resolve({**SMALL, **METHODS["m2d"], "effective_batch": 18, "epochs": 1})
    watch = {"held_out": 2, "watch_epochs": int(name in ("monitor", "evaluate"))}
    run.pretrain(recipe, Inputs(data=str(root / "clips.csv")), root / name, RunSettings(**{**QUIET, **watch}))


if __name__ == "__main__":
    SIZES["tiny"], MaskedModel.flops = SMALLER, lambda _: 0
    root = Path(sys.argv[1])
    fail_everywhere(partial(_train, root), FAILURES, root)
