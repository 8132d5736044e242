"""Image files: read, and cropped at random as MAE does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2d_bench.errors import DataError, UsageError

if TYPE_CHECKING:  # an extra
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")

RATIO = (3 / 4, 4 / 3)
"""Width over height of random crops."""


def read(path: Path) -> Image.Image:
    """An image in RGB.

    Raises:
        DataError: It cannot be read.
        UsageError: Pillow is not there.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("Images need Pillow: pip install pillow.") from None
    try:
        with Image.open(path) as image:
            rgb: Image.Image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image that can be read ({error}).") from error
    return rgb


def random_view(
    image: Image.Image, size: tuple[int, int], area: tuple[float, float], rng: np.random.Generator
) -> Image.Image:
    """A random crop resized (bicubic), in half of the cases flipped from left to right.

    Args:
        image: The image.
        size: Height and width of the view.
        area: Least and largest share of the image that a crop takes.
        rng: Draws.

    Source: MAE (arXiv 2111.06377), appendix A.1.
    """
    from PIL import Image, ImageOps

    box = random_box(image.width, image.height, area, RATIO, rng)
    crop = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def random_box(
    width: int, height: int, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of random area and ratio; where ten tries do not fit, the whole image.

    Args:
        width: Of the image.
        height: Of the image.
        area: Least and largest share of the image.
        ratio: Least and largest width over height.
        rng: Draws.

    Returns:
        Left, top, right and bottom.
    """
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(pixels * aspect)), round(np.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def to_array(image: Image.Image) -> np.ndarray:
    """Pixels of an image in RGB, [3, H, W] float32 in 0..1."""
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
