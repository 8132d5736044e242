"""Devices and precision of a training, set up by Lightning Fabric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from m2d_bench.errors import UsageError
from m2d_bench.settings import Compute

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

Precision = Literal["auto", "fp32", "bf16", "fp16"]


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
    return fabric


def is_first_process() -> bool:
    """Whether this process has rank 0; known before `launch` too."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
