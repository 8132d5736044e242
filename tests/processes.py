"""Processes of a training: two stand-ins in threads, real ones under torchrun, and waiting for one's step."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pytest
import torch

TIMEOUT = 60  # seconds, after which a process that waits in vain fails


@contextmanager
def imported_anew(*packages):
    """Packages as a process that has not imported them finds them; afterwards they are what they were before."""

    def theirs():
        return {name for name in sys.modules if any(f"{name}.".startswith(f"{package}.") for package in packages)}

    before = {name: sys.modules.pop(name) for name in theirs()}
    try:
        yield
    finally:
        for name in theirs():
            del sys.modules[name]
        sys.modules.update(before)
        for package in before.keys() & set(packages):
            parent, _, name = package.rpartition(".")
            if parent:
                setattr(sys.modules[parent], name, before[package])


class Meeting:
    """Where two threads exchange values."""

    def __init__(self):
        self._barrier, self._values = Barrier(2), [None, None]

    def exchange(self, rank, value):
        """The values of both."""
        self._values[rank] = value
        self._barrier.wait(TIMEOUT)
        values = list(self._values)
        self._barrier.wait(TIMEOUT)
        return values


class StandIn:
    """What a process of two sees of Fabric."""

    world_size, device = 2, torch.device("cpu")

    def __init__(self, rank, meeting):
        self.global_rank, self.is_global_zero, self._meeting = rank, rank == 0, meeting

    def all_reduce(self, tensor, reduce_op):
        assert reduce_op == "min"
        tensor.fill_(min(self._meeting.exchange(self.global_rank, int(tensor))))

    def broadcast(self, value):
        return self._meeting.exchange(self.global_rank, value)[0]


def in_two(function):
    """What a function of Fabric returns in either process, or the error it raises."""
    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(function, StandIn(rank, meeting)) for rank in (0, 1)]
    return [future.exception() or future.result() for future in futures]


def under_torchrun(module, *words):
    """Starts a module's `__main__` in two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([*torchrun, "-m", module, *map(str, words)], check=True, env=environment, timeout=600)


def fail_everywhere(train, failures, root):
    """In a real process: trains once for every failure, and writes how each training ended.

    Args:
        train: Trains, given a name.
        failures: What fails, by a name: the rank, and the attribute of an object.
        root: Folder that gets RANK.json.
    """
    rank, ends = int(os.environ["RANK"]), {}
    for name, (failing, owner, attribute) in failures.items():

        def fail(*_, name=name, **__):
            raise OSError(28, f"{name}: no space")

        with pytest.MonkeyPatch.context() as patch:
            if rank == failing:
                patch.setattr(owner, attribute, fail)
            try:
                train(name)
                ends[name] = "done"
            except Exception as error:
                ends[name] = type(error).__name__
    (Path(root) / f"{rank}.json").write_text(json.dumps(ends))


def assert_failed_together(failures, root):
    """What fails in one process has ended the training in the other too, which leaves the message to it."""
    ends = [json.loads((root / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name, (failing, *_) in failures.items():
        assert [ends[failing][name], ends[1 - failing][name]] == ["OSError", "OtherProcessError"], name


def wait_for_step(folder, step):
    """Until the log of the training under a folder has come to a step."""
    deadline = time.time() + 600
    while time.time() < deadline:
        for path in Path(folder).rglob("metrics.jsonl"):
            lines = path.read_bytes().split(b"\n")[:-1]
            if lines and json.loads(lines[-1])["step"] >= step:
                return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")
