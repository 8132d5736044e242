"""Masks: which patches are visible and which are masked, the same counts in every sample of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown

SPAN = 4
"""Patch columns of a contiguous time span."""


class Mask(NamedTuple):
    """Patches of each sample, frequency-major: index = f·N_T + t.

    Args:
        visible: What the encoder sees, [B, V] int64.
        masked: What is predicted, [B, L − V] int64.
    """

    visible: Tensor
    masked: Tensor


def n_visible(n_patches: int, ratio: float) -> int:
    """Number of visible patches: L·(1 − ratio), rounded down.

    Raises:
        UsageError: The ratio leaves no visible or no masked patch.

    Source: MAE (arXiv 2111.06377), official random masking.
    """
    kept = int(n_patches * (1 - ratio)) if 0 < ratio < 1 else 0
    if not 0 < kept < n_patches:
        raise UsageError(
            f"mask_ratio={ratio:g} leaves {kept} of {n_patches} patches visible; it takes a ratio between 0 and 1 that "
            "leaves at least one patch visible and one masked."
        )
    return kept


def draw(kind: str, batch: int, grid_size: tuple[int, int], ratio: float, generator: Generator | None = None) -> Mask:
    """Draws a mask for each sample of a batch.

    Args:
        kind: `uniform` over patches; `structured`, whole frequency rows and time columns; `spans`, contiguous spans of
            time. Of the last two, the last row, column or span is masked in part, so that the ratio is met.
        batch: Number of samples.
        grid_size: Patches in (frequency, time).
        ratio: Share of the patches that is masked.
        generator: Draws, on the CPU; torch's own if None.

    Returns:
        The mask, on the CPU.

    Raises:
        UsageError: Unknown kind, or an impossible ratio.

    Source: uniform: M2D (2023), section 3; structured and spans: AudioMAE (arXiv 2207.06405), section 3.2.
    """
    if kind not in _ORDERS:
        raise unknown("masking", kind, _ORDERS, f"these: {', '.join(_ORDERS)}")
    kept = n_visible(grid_size[0] * grid_size[1], ratio)
    order = _ORDERS[kind](batch, grid_size, generator).argsort(dim=1, stable=True)
    return Mask(order[:, :kept], order[:, kept:])


def _uniform(batch: int, grid_size: tuple[int, int], generator: Generator | None) -> Tensor:
    return torch.rand(batch, grid_size[0] * grid_size[1], generator=generator)


def _structured(batch: int, grid_size: tuple[int, int], generator: Generator | None) -> Tensor:
    """Masks whole rows and columns in random order; a patch is masked with whichever comes first."""
    rows, columns = (torch.rand(batch, count, generator=generator) for count in grid_size)
    return -torch.minimum(rows[:, :, None], columns[:, None, :]).flatten(1)


def _spans(batch: int, grid_size: tuple[int, int], generator: Generator | None) -> Tensor:
    """Masks spans of SPAN columns, from a random offset, in random order with all their frequencies."""
    n_freq, n_time = grid_size
    offset = torch.randint(SPAN, (batch, 1), generator=generator)
    span = (torch.arange(n_time) + offset) // SPAN
    rank = torch.rand(batch, n_time // SPAN + 2, generator=generator).gather(1, span)
    tie_break = torch.arange(n_time, dtype=torch.float64) / (n_time * 2**30)  # a cut span is masked from its start
    return -(rank + tie_break)[:, None, :].expand(-1, n_freq, -1).flatten(1)


_ORDERS: dict[str, Callable[[int, tuple[int, int], Generator | None], Tensor]] = {
    "uniform": _uniform,
    "structured": _structured,
    "spans": _spans,
}
"""Kinds of masking; each returns [B, L] sort keys of the patches, visible ones first."""
