"""What a piece of work takes: its own peak of memory, whatever was held or freed before it."""

import sys
from pathlib import Path

import pytest
import torch

from m2d_bench.encoders.cost import free_memory, measure

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
def test_the_peak_is_that_of_the_work_alone():
    held = torch.ones(64 * MIB // 4)
    large = measure(lambda: torch.ones(128 * MIB // 4).sum(), CPU)
    small = measure(lambda: torch.ones(32 * MIB // 4).sum(), CPU)
    assert 120 * MIB < large.memory < 160 * MIB
    assert 24 * MIB < small.memory < 64 * MIB
    assert held.sum() < free_memory(CPU)


def test_what_the_system_does_not_tell_is_not_known(monkeypatch):
    assert str(measure(lambda: None, torch.device("meta"))).endswith("memory not known")
    monkeypatch.setattr(Path, "write_text", lambda path, text: (_ for _ in ()).throw(OSError("read-only")))
    assert measure(lambda: None, CPU).memory is None
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(OSError("not there")))
    assert free_memory(CPU) == float("inf")
