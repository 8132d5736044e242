"""The HEAR API with MSM-MAE as the default model."""

from m2d_bench.hear_api.api import get_scene_embeddings, get_timestamp_embeddings, loader_of

load_model = loader_of("msm_mae")

__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
