"""Mean and standard deviation of a data set, measured on random crops."""

from __future__ import annotations

import math

from m2d_bench.pretrain.data.loader import CHUNK, CropLoader, EpochSampler
from m2d_bench.pretrain.data.source import Source, check_varied
from m2d_bench.progress import bar


def measure_norm_stats(source: Source, limit: int = 10_000, seed: int = 0, workers: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of random crops, without the padding of short clips.

    Args:
        source: The clips.
        limit: Number of crops, one a clip; fewer where there are fewer clips.
        seed: Decides which clips and where the crops lie.
        workers: Processes that read; they change the time it takes, not the result.

    Raises:
        DataError: All values are the same.

    Source: M2D (2023), section 4.
    """
    n_crops = min(limit, source.n_clips)
    sampler = EpochSampler(
        n_clips=source.n_clips, epoch_clips=n_crops, batch_size=CHUNK, seed=seed, epoch=0, drop_last=False
    )
    count, total, squares = 0, 0.0, 0.0
    with bar("Measuring mean and std", n_crops, "crops") as advance:
        for crops in CropLoader(source, sampler, workers):
            values = source.spectrogram(crops.values).double()
            count += int((~values.isnan()).sum())
            total += float(values.nansum())
            squares += float(values.square().nansum())
            advance(len(crops.values))
    mean = total / count
    std = math.sqrt(max(0.0, squares / count - mean**2))
    check_varied(mean, std)
    return mean, std
