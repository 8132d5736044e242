"""What every training shares: devices and precision, how it is stopped, and the file it goes on from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import torch

from m2d_bench.errors import TrainingError, UsageError
from m2d_bench.settings import Compute, replacing

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

Precision = Literal["auto", "fp32", "bf16", "fp16"]

RESUME = "resume.pt"
"""File in a training's folder from which it goes on."""


def launch(device: str, precision: Precision) -> Fabric:
    """Devices and precision: one device, or those that torchrun or Slurm started this process for.

    Args:
        device: As in `settings.Compute`.
        precision: fp32, bf16, fp16, or auto: bf16 where the device multiplies it natively, else fp32.

    Raises:
        UsageError: Lightning Fabric is not installed, or the device is not there.
    """
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError:
        raise UsageError(
            "Training needs Lightning Fabric. Run pip install 'm2d-bench[pretrain]', or 'm2d-bench[finetune]'."
        ) from None
    compute = Compute(device=device, precision="auto" if precision == "fp16" else precision)
    kind = {"fp32": "32-true", "bf16": "bf16-mixed"}[compute.resolved_precision()]
    devices = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("SLURM_NNODES") or 1)
    found = compute.torch_device()
    if precision == "fp16" and found.type == "cpu":
        raise UsageError("fp16 is trained on GPUs alone. On a CPU take --precision bf16 or fp32.")
    one: Any = [found.index or 0] if found.type == "cuda" and devices == 1 else devices
    try:
        fabric = Fabric(
            accelerator=found.type,
            devices=one,
            num_nodes=nodes,
            strategy="ddp" if devices * nodes > 1 else "auto",
            precision="16-mixed" if precision == "fp16" else kind,  # type: ignore[arg-type]
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:  # of its reading of torchrun's or Slurm's variables
        raise UsageError(f"The devices cannot be set up as the environment says: {error}") from error
    return fabric


def is_first_process() -> bool:
    """Whether this process is the one of a training that speaks for all; before `launch` too."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


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
