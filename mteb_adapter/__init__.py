"""MTEB and MAEB: encoders under mteb's protocol, its evaluation under our names, its results as run records."""

from m2d_bench.mteb_adapter.encoder import MTEBEncoder, model_meta

__all__ = ["MTEBEncoder", "model_meta"]
