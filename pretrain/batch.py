"""What one training step sees: the contract between data and methods."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Crops of B clips on the device of the method. What a method does not need is None.

    Args:
        log_mel: Input of the online encoder, normalised, [B, 1, 80, T], with noise if any is mixed in; or images,
            [B, 3, H, W].
        clips: Index of each clip in its source, [B] int64.
        starts: Log-mel frame of the clip at which its crop starts, [B] int64; 0 for images.
        clean: `log_mel` before noise was mixed in, same shape, for pictures; None without noise.
        labels: Multi-hot labels of the clips, [B, n_classes] float32.
        teacher_features: Output of a frozen teacher for the same crops, [B, T', D'].
    """

    log_mel: Tensor
    clips: Tensor
    starts: Tensor
    clean: Tensor | None = None
    labels: Tensor | None = None
    teacher_features: Tensor | None = None
