"""Augmentations of images: RandAugment and random erasing of one; cutmix, mixup and drop path of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from m2d_bench.images import random_box
from m2d_bench.training.augment import draw_mixup

if TYPE_CHECKING:  # an extra
    from PIL import Image

_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
_CHANGES = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add"),
    *("Color", "Contrast", "Brightness", "Sharpness", "shear_x", "shear_y", "shift_x", "shift_y"),
)


def rand_augment(image: Image.Image, strength: float, fill: Sequence[float], rng: np.random.Generator) -> Image.Image:
    """Two changes drawn with replacement, each made in half of the cases.

    Args:
        image: In RGB.
        strength: Mean of the strength, which varies with deviation 0.5 within 0 to 10.
        fill: Colour in 0..1 of what comes in from outside.
        rng: Draws.

    Source: RandAugment (arXiv 1909.13719), as in MAE's official code (rand-m9-mstd0.5-inc1).
    """
    colour = tuple(round(255 * value) for value in fill)
    for number in rng.integers(len(_CHANGES), size=2):
        if rng.random() < 0.5:
            level = float(np.clip(rng.normal(strength, 0.5), 0, 10)) / 10
            image = _changed(image, _CHANGES[number], level, level if rng.random() < 0.5 else -level, colour)
    return image


def _changed(image: Image.Image, name: str, level: float, signed: float, colour: tuple[int, ...]) -> Image.Image:
    """One of RandAugment's changes, by a level in 0..1; where it has a direction, in that of the sign."""
    from PIL import Image, ImageEnhance, ImageOps

    match name:
        case "rotate":
            return image.rotate(30 * signed, Image.Resampling.BICUBIC, fillcolor=colour)
        case "posterize":
            return ImageOps.posterize(image, max(1, 4 - int(4 * level)))
        case "solarize":
            return ImageOps.solarize(image, 256 - int(256 * level))
        case "solarize_add":
            added = int(110 * level)
            return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)
        case "autocontrast" | "equalize" | "invert":
            changed: Image.Image = getattr(ImageOps, name)(image)
            return changed
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            enhanced: Image.Image = getattr(ImageEnhance, name)(image).enhance(max(0.1, 1 + 0.9 * signed))
            return enhanced
    matrix = {
        "shear_x": (1, 0.3 * signed, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * signed, 1, 0),
        "shift_x": (1, 0, 0.45 * signed * image.width, 0, 1, 0),
        "shift_y": (1, 0, 0, 0, 1, 0.45 * signed * image.height),
    }[name]
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=colour
    )


def erase(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fills a random box of a normalised image [3, H, W] with noise, in place.

    Source: Random erasing (arXiv 1708.04896), filled as in MAE's official code.
    """
    height, width = x.shape[1:]
    left, top, right, bottom = random_box(width, height, _ERASED_AREA, _ERASED_RATIO, rng)
    x[:, top:bottom, left:right] = rng.standard_normal((3, bottom - top, right - left), np.float32)
    return x


def draw_mix(
    size: tuple[int, int], mixup: float, cutmix: float, generator: Generator
) -> tuple[float, tuple[int, int, int, int]]:
    """Draws how the images of a batch are mixed with those of the batch turned around.

    Args:
        size: Height and width.
        mixup: α of the Beta distribution of λ; 0 for none.
        cutmix: α of cutmix's; 0 for none. Where there are both, each takes half of the batches.
        generator: Draws.

    Returns:
        λ, an image's own share; and top, left, height and width of the box that comes from the other image, which is
        empty where the whole images are mixed.

    Source: CutMix (arXiv 1905.04899), with mixup as in MAE's official code.
    """
    cuts = bool(cutmix) and (not mixup or float(torch.rand((), generator=generator)) < 0.5)
    share = float(draw_mixup(1, cutmix if cuts else mixup, generator)[1])
    if not cuts:
        return share, (0, 0, 0, 0)
    edges = []
    for length in size:
        half = int(length * (1 - share) ** 0.5) // 2
        centre = int(torch.randint(length, (), generator=generator))
        first = max(0, centre - half)
        edges.append((first, min(length, centre + half) - first))
    (top, height), (left, width) = edges
    return 1 - height * width / (size[0] * size[1]), (top, left, height, width)


def draw_drop_path(count: int, depth: int, most: float, generator: Generator) -> Tensor:
    """Draws factors of what the blocks' branches add: 0 where one is left out, above 1 where it stays; 1 on average.

    Args:
        count: Samples.
        depth: Blocks.
        most: How often the last block's are left out; it grows linearly from 0.
        generator: Draws.

    Returns:
        [count, depth, 2] float32.

    Source: Stochastic depth (arXiv 1603.09382).
    """
    stays = 1 - torch.linspace(0, most, depth)[:, None]
    return (torch.rand(count, depth, 2, generator=generator) < stays) / stays
