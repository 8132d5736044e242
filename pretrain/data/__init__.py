"""Data for pre-training: sources of clips, batches of random crops, and log-mel shards prepared from audio."""

from m2d_bench.pretrain.data.loader import CropLoader, EpochSampler
from m2d_bench.pretrain.data.norm_stats import measure_norm_stats
from m2d_bench.pretrain.data.opening import open_source
from m2d_bench.pretrain.data.source import Crop, Crops, Source

__all__ = ["Crop", "CropLoader", "Crops", "EpochSampler", "Source", "measure_norm_stats", "open_source"]
