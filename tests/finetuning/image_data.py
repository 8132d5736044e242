"""Small pictures and an encoder of them to fine-tune: seconds on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m2d_bench.encoders.vit import ViT, ViTConfig, initialise
from m2d_bench.randomness import generator_of

COLOURS = {"blue": (60, 90, 200), "green": (60, 200, 90), "red": (200, 60, 90)}


def write_images(root: Path, train: int = 8, val: int = 4, classes: tuple[str, ...] = tuple(COLOURS)) -> str:
    """A task `images:FOLDER` of noisy pictures of 40×32, each class of a colour of its own."""
    pillow = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.array(COLOURS[name]) + rng.normal(0, 40, (32, 40, 3))
                image = pillow.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / split / name / f"{number}.{'JPEG' if number % 2 else 'png'}")
    return f"images:{root}"


def write_encoder(path: Path, **changes: object) -> Path:
    """A random encoder of 32×32 pictures, width 64, depth 2, in the form that pre-training writes."""
    shape = {"width": 64, "depth": 2, "patch_size": (8, 8), "input_size": (32, 32), "channels": 3, **changes}
    vit = initialise(ViT(ViTConfig(**shape)), generator_of("images"))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = {"mask_token": torch.zeros(1, 1, 32), "norm_stats": torch.tensor([0.45, 0.25])}
    torch.save({"model": {**vit.state_dict(), **beside}}, path)
    return path


SMALL = {
    "learning_rate": 2e-3,
    "batch_size": 8,
    "epochs": 6,
    "warmup_epochs": 1,
    "layer_decay": 0.9,
}
"""Values of the recipe to change for them."""
