"""The precision that an encoder computes in: how exact its embeddings are, and the autocast around its blocks."""

from __future__ import annotations

import torch

TOLERANCE = {"fp32": 1e-5, "bf16": 2**-6}
"""How far an embedding may move with its batch mates, relative to its largest value, by precision.

In float32 it is rounding. bfloat16 has 8 significant bits, and kernels that sum in another order for another batch size
round differently in each layer: four units in the last place (4 × 2⁻⁸).
"""


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast in force around an encoder's blocks: its precision, else what the caller set."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type))
