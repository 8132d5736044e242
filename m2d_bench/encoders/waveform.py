"""Waveforms as encoders take them, checked once for every encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2d_bench.audio import LOUDEST
from m2d_bench.errors import AudioError

Waveform = Tensor | np.ndarray
Lengths = Tensor | Sequence[int]

_CHANNELS = 64
"""Rows that are more than their samples, and hold no more than so many, are samples by channels."""


def check_waveform(waveform: Any, lengths: Lengths | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Checks a batch of waveforms once, for every encoder.

    Args:
        waveform: [S] or [B, S] floats.
        lengths: Real samples of each row, or None.
        device: Where the batch goes.

    Returns:
        [B, S] float32 on the device, and lengths [B] int64 on the CPU.

    Raises:
        AudioError: Says what was received and what is allowed.
    """
    batch = _floats(waveform)
    batch = batch.to(device, torch.float32).reshape(-1, batch.shape[-1])
    finite = batch.isfinite().all(dim=1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise AudioError(f"The waveform holds NaN or infinite values in row(s) {rows[:10]} of {len(batch)}.")
    if (peak := float(batch.detach().abs().max())) > LOUDEST:
        raise AudioError(f"The waveform reaches {peak:.3g}, too large for a spectrogram; it should be in [-1, 1].")
    n_rows, samples = batch.shape
    if samples < n_rows and samples <= _CHANNELS:
        raise AudioError(
            f"A batch is [clips, samples], got shape [{n_rows}, {samples}]: {n_rows} clips of {samples} samples. "
            "If these are samples and channels of one clip, mix it down to mono: waveform.mean(1)."
        )
    return batch, torch.full((n_rows,), samples) if lengths is None else _counts(lengths, n_rows, samples)


def noise(rows: int, samples: int) -> Tensor:
    """White noise in [-1, 1], [rows, samples], the same in every call."""
    return torch.rand(rows, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def as_native(array: Any) -> np.ndarray:
    """A copy torch can own: contiguous, writable, native byte order, floats as float32."""
    array = np.array(array)
    return np.array(array, dtype=np.float32 if array.dtype.kind == "f" else None, order="C")


def _floats(waveform: Any) -> Tensor:
    """A waveform as a tensor of floats, [S] or [B, S]."""
    try:
        batch = waveform if isinstance(waveform, Tensor) else torch.from_numpy(as_native(waveform))
    except (TypeError, ValueError) as error:
        raise AudioError(
            f"A waveform is a tensor or an array of floats, got {type(waveform).__name__}: {error}"
        ) from error
    if batch.ndim not in (1, 2) or batch.numel() == 0:
        raise AudioError(
            f"A waveform is [samples] or [batch, samples] and not empty, got shape {list(batch.shape)}. "
            "Mix channels down to mono and stack clips along the first axis."
        )
    if batch.is_meta or batch.layout != torch.strided:
        kind = "device meta, without values" if batch.is_meta else f"layout {batch.layout}"
        raise AudioError(f"A waveform is a dense tensor that holds values, got one of {kind}.")
    if not batch.is_floating_point():
        raise AudioError(
            f"A waveform holds floats in [-1, 1], got {batch.dtype}. Divide integers by their full scale, "
            "for 16 bits waveform / 32768."
        )
    return batch


def _counts(lengths: Lengths, n_rows: int, samples: int) -> Tensor:
    """Lengths as [B] int64 on the CPU."""
    allowed = f"lengths must be {n_rows} whole numbers of samples between 1 and {samples}, got"
    try:
        given = torch.as_tensor(lengths).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise AudioError(f"{allowed} {lengths!r}: {error}") from error
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    counts = given.long()
    if not whole or counts.shape != (n_rows,) or bool(((counts < 1) | (counts > samples)).any()):
        kind = str(given.dtype).removeprefix("torch.")
        raise AudioError(f"{allowed} {kind} {given.flatten().tolist()[:10]}.")
    return counts
