"""FLOPs of a computation, and what a device could do at best."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(compute: Callable[[], object]) -> int:
    """FLOPs of the matrix multiplications and convolutions in a call, a multiply-add as two operations.

    Normalisation, softmax, GELU and the optimizer are left out.

    Args:
        compute: What is counted; on the meta device it costs no arithmetic.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no fused kernel of CPUs
        compute()
    total: int = counter.get_total_flops()
    return total


_PEAK = (
    ("B200", 2250e12),
    ("GH200", 989.4e12),
    ("H200 NVL", 835.5e12),
    ("H200", 989.4e12),
    ("H100 NVL", 835.5e12),
    ("H100 PCIe", 756.5e12),
    ("H100", 989.4e12),  # SXM: its name gives the memory instead
    ("A100", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090 Ti", 80e12),
    ("RTX 3090", 71e12),
    ("MI300X", 1307.4e12),
)
"""Words of a device's name → dense bf16 FLOP/s with float32 accumulation, the first that fits.

Source: NVIDIA's and AMD's data sheets and white papers; where they print the rate with sparsity, half of it.
"""

_PARTS = {"MIG", "GRID", "Laptop", "D"}
"""Words of slices of a device and of reduced versions, whose rate is another."""


def peak_flops(device: torch.device | str) -> float | None:
    """Dense bf16 FLOP/s of a device by its data sheet, None for CPUs and devices that are not in the table."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    words = set(re.split(r"[\s-]+", torch.cuda.get_device_name(device)))
    if words & _PARTS:
        return None
    return next((peak for name, peak in _PEAK if words.issuperset(name.split())), None)
