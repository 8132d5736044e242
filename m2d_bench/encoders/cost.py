"""Time and memory that a piece of work takes, where the system tells."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_RESET_PEAK = "5"
"""Written into clear_refs, it sets the peak to the present size. Source: proc_pid_clear_refs(5)."""


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Args:
        seconds: Wall-clock time.
        memory: Bytes at the peak beyond those held before; None where the system does not tell.
    """

    seconds: float
    memory: int | None

    def __str__(self) -> str:
        return f"{self.seconds:.2g} s, {mebibytes(self.memory)}"


def mebibytes(memory: int | None) -> str:
    """Bytes as people read them."""
    return "memory not known" if memory is None else f"{memory / 2**20:.0f} MiB"


def measure(work: Callable[[], object], device: torch.device) -> Cost:
    """Does the work; memory is the GPU's on CUDA, the process's on a CPU under Linux.

    Args:
        work: Leaves nothing running on the device.
        device: Where it computes.
    """
    held = _peak(device, reset=True)
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    peak = _peak(device)
    return Cost(seconds, None if held is None or peak is None else peak - held)


def free_memory(device: torch.device) -> float:
    """Bytes that are free for the work; infinite where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable") or math.inf


def _peak(device: torch.device, *, reset: bool = False) -> int | None:
    """Bytes held at most since the last reset, None where the system does not tell."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            with suppress(AttributeError, TypeError):  # on other systems
                ctypes.CDLL(None).malloc_trim(0)  # what was freed, and would be used again unseen
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return None
    return _kibibytes(Path("/proc/self/status"), "VmHWM") if device.type == "cpu" else None


def _kibibytes(file: Path, key: str) -> int | None:
    """A number of kB in one of Linux's tables, in bytes."""
    try:
        table = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return 1024 * int(table[key].removesuffix("kB"))
    except (OSError, KeyError):
        return None
