"""Augmentations of fine-tuning: mixup of waveforms; SpecAugment and random resize crop of log-mel spectrograms.

Each is a function that draws its random values for a whole batch, and one that applies them to any rows of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

VIRTUAL_AREA = (1.0, 1.5)
"""The area random resize crop crops from, in (frequency, time), relative to the input, which lies in its middle."""

CROP_SCALE = (0.6, 1.5)
"""Least and largest crop relative to the input, in frequency as in time."""


def draw_mixup(batch: int, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draws the partner of each sample for mixup, and the sample's own weight λ ~ Beta(α, α).

    Args:
        batch: Number of samples.
        alpha: Of the Beta distribution; 0 mixes nothing.
        generator: Draws.

    Returns:
        Partners [B] int64, and λ [B] float32.

    Source: mixup (arXiv 1710.09412), with a λ for each sample as M2D-X (2024), fine-tuning details.
    """
    if not alpha:
        return torch.arange(batch), torch.ones(batch)
    partner = torch.randperm(batch, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    share = np.random.default_rng(seed).beta(alpha, alpha, batch)  # torch's Beta takes no generator
    return partner, torch.from_numpy(share).float()


def mix(own: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Mixes samples with their partners: λ · own + (1 − λ) · others.

    Args:
        own: Waveforms or one-hot labels, [B, …].
        others: Their partners', [B, …].
        share: λ of each, [B].
    """
    share = share.view(-1, *[1] * (own.ndim - 1))
    return share * own + (1 - share) * others


def draw_masks(batch: int, size: tuple[int, int], widths: tuple[int, int], generator: Generator) -> Tensor:
    """Draws SpecAugment's bands: one in frequency and one in time a sample, of uniform width and position.

    Args:
        batch: Number of samples.
        size: (frequency, time) of the spectrograms.
        widths: Largest (frequency, time) width; 0 for none.
        generator: Draws.

    Returns:
        First and last (exclusive) bin, first and last (exclusive) frame, [B, 4] int64.

    Source: SpecAugment (arXiv 1904.08779).
    """
    edges = []
    for length, most in zip(size, widths, strict=True):
        width = _integers(torch.full((batch,), min(most, length)), generator)
        first = _integers(length - width, generator)
        edges += [first, first + width]
    return torch.stack(edges, dim=1)


def mask(log_mel: Tensor, edges: Tensor) -> Tensor:
    """Masks bands with 0, the mean of normalised spectrograms.

    Args:
        log_mel: [B, 1, F, T].
        edges: See `draw_masks`, [B, 4].
    """
    edges = edges.to(log_mel.device)
    bins, frames = (torch.arange(n, device=log_mel.device) for n in log_mel.shape[-2:])
    masked_bins = (bins >= edges[:, :1]) & (bins < edges[:, 1:2])
    masked_frames = (frames >= edges[:, 2:3]) & (frames < edges[:, 3:])
    return log_mel.masked_fill((masked_bins[:, :, None] | masked_frames[:, None, :])[:, None], 0.0)


def draw_crops(batch: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Draws the boxes of random resize crop in the virtual area.

    Args:
        batch: Number of samples.
        size: (frequency, time) of the spectrograms.
        generator: Draws.

    Returns:
        First bin and frame, and height and width, [B, 4] int64.

    Source: BYOL-A (arXiv 2103.06695), random resize crop.
    """
    least, largest = CROP_SCALE
    starts, lengths = [], []
    for length, area in zip(size, VIRTUAL_AREA, strict=True):
        scale = least + (largest - least) * torch.rand(batch, generator=generator)
        lengths.append((scale * length).long().clamp(1, int(area * length)))
        starts.append(_integers(int(area * length) - lengths[-1], generator))
    return torch.stack([*starts, *lengths], dim=1)


def resize_crops(log_mel: Tensor, boxes: Tensor) -> Tensor:
    """Cuts a box out of each sample's virtual area and resizes it to the sample's size, bicubic between the corners.

    Args:
        log_mel: [B, 1, F, T].
        boxes: See `draw_crops`, [B, 4].
    """
    height, width = log_mel.shape[-2:]
    area = [int(scale * length) for scale, length in zip(VIRTUAL_AREA, (height, width), strict=True)]
    top, left = (area[0] - height) // 2, (area[1] - width) // 2
    canvas = log_mel.new_zeros(*log_mel.shape[:2], *area)
    canvas[..., top : top + height, left : left + width] = log_mel
    resized = [
        interpolate(sample[None, :, i : i + h, j : j + w], size=(height, width), mode="bicubic", align_corners=True)
        for sample, (i, j, h, w) in zip(canvas, boxes.tolist(), strict=True)
    ]
    return torch.cat(resized)


def _integers(most: Tensor, generator: Generator) -> Tensor:
    """Uniform integers from 0 to each of `most`, both included."""
    return (torch.rand(most.shape, generator=generator) * (most + 1)).long().clamp(max=most)
