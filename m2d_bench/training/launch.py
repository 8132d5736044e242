"""Devices and precision of a training, set up by Lightning Fabric."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from m2d_bench.errors import OtherProcessError, UsageError
from m2d_bench.settings import Compute

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

Precision = Literal["auto", "fp32", "bf16", "fp16"]

Result = TypeVar("Result")


def launch(device: str, precision: Precision) -> Fabric:
    """Sets up devices and precision: one device, or those that torchrun or Slurm started this process for.

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
    fabric_precision: Any = {"fp32": "32-true", "bf16": "bf16-mixed"}[compute.resolved_precision()]
    devices = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("SLURM_NNODES") or 1)
    torch_device = compute.torch_device()
    if precision == "fp16" and torch_device.type == "cpu":
        raise UsageError("fp16 is trained on GPUs alone. On a CPU take --precision bf16 or fp32.")
    device_ids: Any = [torch_device.index or 0] if torch_device.type == "cuda" and devices == 1 else devices
    try:
        fabric = Fabric(
            accelerator=torch_device.type,
            devices=device_ids,
            num_nodes=nodes,
            strategy="ddp" if devices * nodes > 1 else "auto",
            precision="16-mixed" if precision == "fp16" else fabric_precision,
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:  # of its reading of torchrun's or Slurm's variables
        raise UsageError(f"The devices cannot be set up as the environment says: {error}") from error
    if fabric.world_size > 1:
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """Ends gloo's threads before the interpreter does, which now and then aborts; Fabric does it for NCCL alone."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def failing_together(fabric: Fabric) -> Iterator[None]:
    """Context at whose end the processes wait for each other; an error in one of them ends it in all.

    Nothing inside may wait for another process: one that failed would not come.

    Args:
        fabric: Launched.

    Raises:
        OtherProcessError: Another process failed. Of several that did, the one of the lowest rank raises its own error.
    """
    if fabric.world_size == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    rank = torch.tensor(fabric.world_size if failure is None else fabric.global_rank, device=fabric.device)
    fabric.all_reduce(rank, reduce_op="min")  # in place
    if failure and rank == fabric.global_rank:
        raise failure
    if rank < fabric.world_size:
        raise OtherProcessError(f"The process of rank {int(rank)} failed; it reports the error.") from failure


def from_first_process(fabric: Fabric, function: Callable[[], Result]) -> Result:
    """Result of a function that the first process alone runs, for all; its error is raised as in `failing_together`."""
    result: Any = None
    with failing_together(fabric):
        if fabric.is_global_zero:
            result = function()
    shared: Result = fabric.broadcast(result)
    return shared


def is_first_process() -> bool:
    """Whether this process has rank 0; known before `launch` too."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
