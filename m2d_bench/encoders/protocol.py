"""The contract every encoder fulfils, and the check of what goes into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from m2d_bench.errors import AudioError

Waveform = Tensor | np.ndarray
Lengths = Tensor | Sequence[int]


@runtime_checkable
class AudioEncoder(Protocol):
    """What the harness and every adapter ask of an encoder.

    An embedding never depends on batch mates or on padding. Waveforms are mono float32 in [-1, 1] at `sample_rate` Hz.
    """

    sample_rate: int
    hop_ms: float
    scene_embedding_size: int
    timestamp_embedding_size: int

    @property
    def digest(self) -> str:
        """Identity of weights and settings, used by every cache and record."""

    def hidden_states(self, waveform: Waveform) -> list[Tensor]:
        """[B, S] → the output of every layer, [B, T, D] each."""

    def timestamp_embeddings(self, waveform: Waveform) -> tuple[Tensor, Tensor]:
        """[B, S] → embeddings [B, T, D] and their timestamps [B, T] in ms."""

    def scene_embeddings(self, waveform: Waveform) -> Tensor:
        """[B, S] → [B, D]."""


def facts_of(encoder: AudioEncoder) -> dict[str, Any]:
    """What a run's record says of an encoder: name, digest, and its configuration where it has one."""
    config = getattr(encoder, "config", None)
    name = config.name if config is not None else type(encoder).__name__
    return {"name": name, "digest": encoder.digest, "config": asdict(config) if config is not None else {}}


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
    try:
        batch = waveform if isinstance(waveform, Tensor) else torch.from_numpy(_native(waveform))
    except (TypeError, ValueError) as error:
        raise AudioError(
            f"A waveform is a tensor or an array of floats, got {type(waveform).__name__}: {error}"
        ) from error
    if batch.ndim not in (1, 2) or batch.numel() == 0:
        raise AudioError(
            f"A waveform is [samples] or [batch, samples] and not empty, got shape {list(batch.shape)}. "
            "Mix channels down to mono and stack clips along the first axis."
        )
    if not batch.is_floating_point():
        raise AudioError(
            f"A waveform holds floats in [-1, 1], got {batch.dtype}. Divide integers by their full scale, "
            "for 16 bits waveform / 32768."
        )
    batch = batch.to(device, torch.float32).reshape(-1, batch.shape[-1])
    finite = batch.isfinite().all(dim=1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise AudioError(f"The waveform holds NaN or infinite values in row(s) {rows[:10]} of {len(batch)}.")
    samples = batch.shape[1]
    counts = torch.full((len(batch),), samples) if lengths is None else torch.as_tensor(lengths).cpu().long()
    if counts.shape != (len(batch),) or bool((counts < 1).any()) or bool((counts > samples).any()):
        raise AudioError(
            f"lengths must be {len(batch)} numbers of samples between 1 and {samples}, got {counts.tolist()[:10]}."
        )
    return batch, counts


def _native(waveform: Any) -> np.ndarray:
    """A copy torch can own: contiguous, writable, native byte order, floats as float32."""
    array = np.array(waveform)
    return np.array(array, dtype=np.float32 if array.dtype.kind == "f" else None, order="C")
