"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, end: float = 0.0) -> float:
    """Linear warm-up from 0, then half a cosine down to the end.

    Args:
        step: Optimizer steps done, from 0.
        peak: Highest rate.
        warmup_steps: Steps of the warm-up.
        total_steps: Steps of the whole training.
        end: Lowest rate, which would be that of the step after the last.

    Source: MAE (arXiv 2111.06377), official schedule, stepped per iteration.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))


def scaled_rate(base: float, effective_batch: int) -> float:
    """Peak learning rate of a base rate: in proportion to the effective batch, a base batch being 256."""
    return base * effective_batch / 256
