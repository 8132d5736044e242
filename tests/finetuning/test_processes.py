"""Fine-tuning in two processes, of which one alone meets an error."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("lightning_fabric")

from m2d_bench import finetune, runs
from m2d_bench.finetuning import job
from m2d_bench.finetuning.trainer import Trainer
from m2d_bench.training.log import Log
from tests.finetuning.finetuning_data import SMALL, splits_task, write_model
from tests.processes import assert_failed_together, fail_everywhere, under_torchrun

FAILURES = {
    "data": (1, job.datasets, "load"),
    "finished": (0, job.Job, "_finished"),
    "lock": (0, job, "_locked"),
    "resumed": (0, job, "_state"),
    "log": (0, Log, "__init__"),
    "record": (0, Log, "scalars"),
    "model": (0, Trainer, "_write"),
    "run": (0, job.Job, "_finish"),
    "done": (0, runs, "load_as"),
}


@pytest.mark.slow
def test_whatever_fails_in_one_process_ends_both(tmp_path):
    write_model(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps({**SMALL, "epochs": 2}))
    under_torchrun("tests.finetuning.test_processes", splits_task(tmp_path / "splits"), tmp_path)
    assert_failed_together(FAILURES, tmp_path)


def _train(task, root, name):
    settings = {"device": "cpu", "precision": "fp32", "seeds": 1}  # an epoch's score is logged before any step
    folders = {"out": root / name, "runs": root / f"{name}_runs"}
    finetune(root / "small.safetensors", task, root / "small.yaml", **folders, **settings)


if __name__ == "__main__":
    task, root = sys.argv[1:]
    fail_everywhere(partial(_train, task, Path(root)), FAILURES, root)
