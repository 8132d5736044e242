"""How a training is stopped, and the file it goes on from."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from m2d_bench.errors import TrainingError
from m2d_bench.settings import replacing

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

RESUME = "resume.pt"
"""File in a training's folder from which it goes on."""


@contextmanager
def stops() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C or SIGTERM asked for an end after the step under way; a second one ends at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agreed(fabric: Fabric, asked: bool, looks: bool) -> bool:
    """Whether to stop: on one device at once; on several, which may be asked one by one, when all look."""
    if fabric.world_size == 1:
        return asked
    if not looks:
        return False
    flag = torch.tensor(float(asked), device=fabric.device)
    torch.distributed.all_reduce(flag)
    return bool(flag)


def write_resume(fabric: Fabric, folder: Path, state: Mapping[str, Any]) -> None:
    """Writes what a training goes on from, whole or not at all; the first process does, the others wait."""
    if fabric.is_global_zero:
        with replacing(folder / RESUME) as file:
            torch.save(state, file)
    fabric.barrier()


def last_good(folder: Path) -> str:
    """Where a training that cannot go on was last sound, for a message."""
    path = folder / RESUME
    return f"The last good state is {path}" if path.is_file() else "Nothing was saved before"


def read_resume(folder: Path) -> dict[str, Any] | None:
    """What a training in this folder was saved as, if anything.

    Raises:
        TrainingError: The file cannot be read.
    """
    path = folder / RESUME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle raises
        raise TrainingError(f"{path}: cannot be read ({error}). Remove it to start anew.") from error
    return state
