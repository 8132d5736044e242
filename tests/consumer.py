"""A program that uses the public names, every line right: what type checkers are shown (test_types.py)."""

from __future__ import annotations

from pathlib import Path

import torch

import m2d_bench.hear_api as hear_api
from m2d_bench import LinearSettings, finetune, linear, load_encoder
from m2d_bench.results import report
from m2d_bench.runs import Run


def embed(waveform: torch.Tensor) -> torch.Tensor:
    encoder = load_encoder("m2d_tiny")
    frames, timestamps = encoder.timestamp_embeddings(waveform)
    assert frames.shape[:2] == timestamps.shape
    return encoder.scene_embeddings(waveform)


def evaluate(data: Path) -> str:
    runs: list[Run] = linear("m2d_tiny", ["esc50"], LinearSettings(data=data, seeds=3))
    runs += finetune("m2d_tiny", "esc50", data=data)
    return report(runs, "md")


def embed_by_hear(waveform: torch.Tensor) -> torch.Tensor:
    return hear_api.get_scene_embeddings(waveform, hear_api.load_model())
