"""HEAR API with M2D-AS as the default model; its weights are found by `m2d_bench.encoders.variants`."""

from __future__ import annotations

import os
from typing import Any

from m2d_bench.encoders import variants

from . import api
from .api import get_scene_embeddings, get_timestamp_embeddings

__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


def load_model(model_file_path: str | os.PathLike[str] = "", **settings: Any) -> api.HearModel:
    """As `m2d_bench.hear_api.load_model`; without a path it loads M2D-AS weights."""
    return api.load_model(model_file_path or variants.find("m2d_as"), **settings)
