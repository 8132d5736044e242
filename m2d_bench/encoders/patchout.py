"""Structured patchout: training on fewer patches, whole rows and columns of the grid left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.errors import UsageError


def draw_patches(grid_size: tuple[int, int], ratio: float, batch: int, generator: Generator | None = None) -> Tensor:
    """Patches that stay when whole frequency rows and time columns are dropped.

    How many rows are dropped is drawn for the batch; the columns make up the rest of the ratio. Which ones is drawn for
    each sample.

    Args:
        grid_size: Patches in (frequency, time).
        ratio: Share of the patches to drop, from 0 to below 1.
        batch: Number of samples.
        generator: Draws; torch's own if None.

    Returns:
        Indices into the frequency-major patches, [B, n] int64, ascending, the same n for every sample.

    Raises:
        UsageError: A ratio outside of what is allowed.

    Source: M2D-X (2024), fine-tuning details; PaSST (arXiv 2110.05069).
    """
    if not 0 <= ratio < 1:
        raise UsageError(f"The patchout ratio is {ratio}; it must be at least 0 and below 1.")
    n_freq, n_time = grid_size
    most = min(n_freq - 1, int(ratio * n_freq))
    keep_freq = n_freq - int(torch.randint(most + 1, (), generator=generator))
    keep_time = min(n_time, max(1, round((1 - ratio) * n_freq * n_time / keep_freq)))
    rows = torch.rand(batch, n_freq, generator=generator).argsort(1)[:, :keep_freq].sort(1).values
    columns = torch.rand(batch, n_time, generator=generator).argsort(1)[:, :keep_time].sort(1).values
    return (rows[:, :, None] * n_time + columns[:, None, :]).flatten(1)


def draw_windows(
    encoder: M2DEncoder, frames: int, ratio: float, batch: int, generator: Generator | None = None
) -> list[Tensor]:
    """Patches that stay of each window an encoder cuts a spectrogram into; see `draw_patches`.

    Args:
        encoder: The encoder.
        frames: Frames of the log-mel spectrograms.
        ratio: Share of the patches of each window to drop.
        batch: Number of samples.
        generator: Draws; torch's own if None.

    Returns:
        [B, n] indices for each window.
    """
    n_freq = encoder.config.vit.grid_size[0]
    return [draw_patches((n_freq, n), ratio, batch, generator) for n in encoder.window_columns(frames)]


def encode_kept(
    encoder: M2DEncoder, log_mel: Tensor, kept: Sequence[Tensor], *, last_only: bool = False
) -> list[Tensor]:
    """Encodes normalised log-mel spectrograms of one length without the patches that were dropped, window by window.

    Args:
        encoder: The encoder.
        log_mel: [B, 1, 80, frames].
        kept: Patches of each window, see `draw_windows`.
        last_only: Return the last layer alone.

    Returns:
        [B, patches that stay, width] float32 per layer, the windows one after the other.
    """
    patch_time, frames = encoder.config.vit.patch_size[1], log_mel.shape[-1]
    window = encoder.window(frames)
    outputs = []
    for index, (columns, patches) in enumerate(zip(encoder.window_columns(frames), kept, strict=True)):
        part = log_mel[..., index * window :][..., : columns * patch_time]
        part = pad(part, (0, columns * patch_time - part.shape[-1])).contiguous()
        outputs.append(encoder.encode_patches(part, patches.to(log_mel.device), last_only=last_only))
    return [torch.cat(layers, dim=1) for layers in zip(*outputs, strict=True)]


def encode_patched_out(
    encoder: M2DEncoder, log_mel: Tensor, ratio: float, generator: Generator | None = None
) -> list[Tensor]:
    """Encodes normalised log-mel spectrograms of one length with patches dropped, window by window.

    Args:
        encoder: The encoder.
        log_mel: [B, 1, 80, frames].
        ratio: Share of the patches of each window to drop.
        generator: Draws the patches.

    Returns:
        [B, patches that stay, width] float32 per layer, the windows one after the other.
    """
    return encode_kept(encoder, log_mel, draw_windows(encoder, log_mel.shape[-1], ratio, len(log_mel), generator))
