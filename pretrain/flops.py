"""Model FLOPs of pre-training, counted by hand, and what a device could do at best.

Counted are matrix multiplications, a multiply-add as two operations. Left out are normalisation, softmax, GELU, the
loss, the optimizer and the EMA, and work that is done twice to save memory: utilisation is of what the model needs, not
of what the program does.

With n tokens, width D, patches of P = C·pf·pt pixels:

    linear layer, n rows, I → O        2·n·I·O
    patch projection, L patches        2·L·P·D
    block: qkv                         2·n·D·3D     = 6·n·D²
           q·kᵀ, all heads together    2·n·n·D
           weights·v                   2·n·n·D
           proj                        2·n·D·D      = 2·n·D²
           MLP D → 4D → D              2·(2·n·D·4D) = 16·n·D²
           together                    24·n·D² + 4·n²·D
    predictor, width W, depth K        embed 2·(1+V)·D·W; blocks K·(24·(1+L)·W² + 4·(1+L)²·W); pred 2·M·W·O

where of L patches V are visible and M = L − V masked; 1+ is the class token; O = P for MSM-MAE, D for M2D. The
backward pass of a multiplication is two of the same size, the gradients of its two factors: forward and backward are
3 × forward. The patch projection's input needs no gradient: 2 ×. The target branch has no backward pass: 1 ×, over 1+M
tokens, or 1+L with all patches to the target; it shares the patch projection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from m2d_bench.encoders.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A part of a method's training step on one clip.

    Args:
        name: What it is, for tables.
        forward: FLOPs of its forward pass.
        passes: Forward and backward passes in units of the forward pass: 3 trained, 2 trained on an input without
            gradient, 1 without gradient.
    """

    name: str
    forward: int
    passes: Literal[1, 2, 3] = 3

    @property
    def flops(self) -> int:
        """FLOPs of forward and backward pass."""
        return self.forward * self.passes


def training_flops(branches: Iterable[Branch]) -> int:
    """Model FLOPs of training on one clip; a step takes clips times as many."""
    return sum(branch.flops for branch in branches)


def encoder_branches(config: ViTConfig, visible: int) -> tuple[Branch, Branch]:
    """Patch projection of every patch, and the online encoder over the visible ones.

    Args:
        config: Shape of the encoder; the clip has its input size.
        visible: Visible patches V of a clip.
    """
    patches = linear_flops(prod(config.grid_size), config.channels * prod(config.patch_size), config.width)
    return (
        Branch(name="patch projection", forward=patches, passes=2),
        Branch(name="online encoder", forward=transformer_flops(1 + visible, config.width, config.depth)),
    )


def predictor_branch(
    *, encoder_width: int, width: int, depth: int, visible: int, masked: int, output_width: int
) -> Branch:
    """Embedding of the visible tokens, blocks over all tokens, outputs at the masked ones.

    Args:
        encoder_width: D.
        width: W, the predictor's own.
        depth: Blocks of the predictor.
        visible: V of a clip.
        masked: M of a clip, the patches that are predicted.
        output_width: Pixels of a patch (MSM-MAE) or D (M2D).
    """
    embed = linear_flops(1 + visible, encoder_width, width)
    blocks = transformer_flops(1 + visible + masked, width, depth)
    return Branch(name="predictor", forward=embed + blocks + linear_flops(masked, width, output_width))


def target_branch(config: ViTConfig, patches: int) -> Branch:
    """Target encoder over so many patches of a clip: the masked ones, or all."""
    return Branch(name="target encoder", forward=transformer_flops(1 + patches, config.width, config.depth), passes=1)


def linear_flops(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of a linear layer on so many rows."""
    return 2 * rows * inputs * outputs


def transformer_flops(tokens: int, width: int, depth: int) -> int:
    """FLOPs of the forward pass of transformer blocks over one clip's tokens, class token included."""
    qkv = linear_flops(tokens, width, 3 * width)
    products = 2 * linear_flops(tokens, width, tokens)  # q·kᵀ and weights·v
    proj = linear_flops(tokens, width, width)
    mlp = 2 * linear_flops(tokens, width, 4 * width)
    return depth * (qkv + products + proj + mlp)


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
