"""Folders of images, for the image experiments of M2D (2023), appendix A."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m2d_bench import images
from m2d_bench.pretrain.data.listing import Paths
from m2d_bench.pretrain.data.source import Crop
from m2d_bench.pretrain.data.sources import FileSource

_AREA = (0.2, 1.0)


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
        image = images.read(self.root / self.path(index))
        return Crop(images.to_array(images.random_view(image, self._size, _AREA, rng)), 0)
