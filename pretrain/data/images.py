"""Folders of images, for the image experiments of M2D (2023), appendix A."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m2d_bench.errors import DataError, UsageError
from m2d_bench.pretrain.data.listing import Paths
from m2d_bench.pretrain.data.source import Crop
from m2d_bench.pretrain.data.sources import FileSource

SUFFIXES = (".png", ".jpg", ".jpeg")
_AREA, _RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


class ImageSource(FileSource):
    """A tree of images: random resized crop as MAE's (20–100% of the area, ratio 3/4–4/3, bicubic), horizontal flip.

    Args:
        root: The tree.
        paths: The files.
        size: Height and width of a crop.

    Source: MAE (arXiv 2111.06377), appendix A.1.
    """

    channels = 3

    def __init__(self, root: Path, paths: Paths, size: tuple[int, int]) -> None:
        super().__init__(root, paths, "images")
        self._size = size

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        """Reads a random crop, [3, H, W] float32 in 0..1."""
        try:
            from PIL import Image
        except ImportError:
            raise UsageError("Images need Pillow: pip install pillow.") from None
        path = self.root / self.path(index)
        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not an image that can be read ({error}).") from error
        height, width = self._size
        crop = rgb.resize((width, height), Image.Resampling.BICUBIC, box=_random_box(rgb.width, rgb.height, rng))
        pixels = np.asarray(crop, np.float32).transpose(2, 0, 1) / 255
        return Crop(np.ascontiguousarray(pixels[:, :, ::-1] if rng.random() < 0.5 else pixels), 0)


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop of random area and ratio; where ten tries do not fit, the whole image."""
    for _ in range(10):
        area = width * height * rng.uniform(*_AREA)
        ratio = np.exp(rng.uniform(*np.log(_RATIO)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height
