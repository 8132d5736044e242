"""Several processes: an error in one ends all, and is told once."""

import pytest

pytest.importorskip("lightning_fabric")

import atexit
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from m2d_bench import cli
from m2d_bench.errors import DataError, OtherProcessError, UsageError
from m2d_bench.training.launch import failing_together, from_first_process, launch
from m2d_bench.training.log import StepReporter
from m2d_bench.training.loop import Step, TrainingLoop
from tests.processes import in_two, under_torchrun


def fail(*_, **__):
    raise DataError("no sound")


@pytest.mark.parametrize(("failing", "reporting"), [([0], 0), ([1], 1), ([0, 1], 0)])
def test_an_error_in_one_process_ends_all_and_is_told_once(failing, reporting):
    def work(fabric):
        with failing_together(fabric):
            if fabric.global_rank in failing:
                raise DataError(f"no sound in {fabric.global_rank}")

    ends = in_two(work)
    other = ends.pop(1 - reporting)
    assert (type(ends[0]), str(ends[0])) == (DataError, f"no sound in {reporting}")
    assert (type(other), str(other)) == (
        OtherProcessError,
        f"The process of rank {reporting} failed; it reports the error.",
    )


def test_the_first_process_computes_for_all():
    asked = []
    assert in_two(lambda fabric: from_first_process(fabric, lambda: asked.append(1) or (1.5, "a"))) == [(1.5, "a")] * 2
    assert asked == [1]
    first, other = in_two(lambda fabric: from_first_process(fabric, fail))
    assert (type(first), type(other)) == (DataError, OtherProcessError)


def test_a_process_alone_keeps_its_error():
    fabric = launch("cpu", "fp32")
    assert from_first_process(fabric, lambda: 7) == 7
    with pytest.raises(DataError, match="no sound"):
        from_first_process(fabric, fail)


@pytest.mark.parametrize("step", [20, 33])
def test_a_record_that_cannot_be_written_ends_all(step):
    def report(fabric):
        log, advance = SimpleNamespace(scalars=fail if fabric.is_global_zero else print), SimpleNamespace()
        meter = SimpleNamespace(update=print, measure=dict)
        reporter = StepReporter(fabric=fabric, log=log, meter=meter, advance=advance, every=20, last=33, describe=str)
        reporter(Step(number=step, clips=8, loss=torch.tensor(1.0), scalars={}))

    first, other = in_two(report)
    assert (type(first), type(other)) == (DataError, OtherProcessError)


def test_a_state_that_cannot_be_written_ends_all(tmp_path):
    class Loop(TrainingLoop):
        optimizer = torch.optim.SGD([torch.zeros(1)])
        train_step = not_finite = None

        def state(self):
            return {"unwritable": lambda: None}

    def save(fabric):
        fabric.strategy = SimpleNamespace(precision=SimpleNamespace(state_dict=dict))
        Loop(fabric, tmp_path, None, 1, 1).save_resume()

    first, other = in_two(save)
    assert type(other) is OtherProcessError
    assert type(first) is not OtherProcessError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "said"), [(UsageError("which?"), "ERROR: which?\n"), (OtherProcessError("0"), "")])
def test_the_command_leaves_the_message_to_the_process_that_failed(error, said, monkeypatch, capsys):
    def run(words):
        raise error

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main([]) != 0
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_processes_have_left_their_group_when_the_interpreter_ends(tmp_path):
    under_torchrun("tests.training.test_launch", tmp_path)
    for rank in "01":
        assert (tmp_path / rank).read_text() == "in a group: False"


def note_group(path):
    path.write_text(f"in a group: {torch.distributed.is_initialized()}")


if __name__ == "__main__":
    atexit.register(note_group, Path(sys.argv[1], os.environ["RANK"]))  # called last, for it is registered first
    launch("cpu", "fp32")
    assert torch.distributed.is_initialized()
