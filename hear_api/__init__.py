"""HEAR 2021 common API over the core's encoders: `load_model`, `get_timestamp_embeddings`, `get_scene_embeddings`.

`m2d_bench.hear_api.m2d`, `.m2d_s`, `.m2d_as` and `.msm_mae` are the same with weights of that variant as the default.
"""

from m2d_bench.hear_api.api import HearModel, get_scene_embeddings, get_timestamp_embeddings, load_model

__all__ = ["HearModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
