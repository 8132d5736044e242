"""Image classification in ImageNet's layout, as a task; and its images as the network sees them.

FOLDER/train/CLASS/*.JPEG     images that train
FOLDER/val/CLASS/*.JPEG       images that are tested
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2d_bench import images, tasks
from m2d_bench.errors import DataError, UsageError
from m2d_bench.files import find
from m2d_bench.finetuning.batches import ClipCache
from m2d_bench.finetuning.images import augment
from m2d_bench.finetuning.images.encoder import ImageConfig
from m2d_bench.finetuning.recipe import ImageRecipe
from m2d_bench.settings import Storage
from m2d_bench.tasks import index
from m2d_bench.tasks.contents import Contents
from m2d_bench.tasks.dataset import Dataset
from m2d_bench.tasks.task import Entry, Task

if TYPE_CHECKING:  # an extra
    from PIL import Image

PREFIX = "images:"

_SPLITS = {"train": "train", "val": "test"}
_AREA = (0.08, 1.0)
_CROP = 224 / 256
"""Side of a test crop relative to the image's shorter side. Source: MAE's official code."""


def get(name: str, storage: Storage = Storage()) -> Task:
    """A task of images, `images:FOLDER`, or of sound, see `tasks.get`.

    Raises:
        UsageError: No such task or folder.
        DataError: The folder is laid out in another way.
    """
    if not name.startswith(PREFIX):
        return tasks.get(name, storage)
    folder = Path(name.removeprefix(PREFIX)).expanduser().resolve()
    _, listed = entries(folder)
    return Task.listed(
        listed,
        name=f"{PREFIX}{folder.name}",
        clip_seconds=0.0,
        lister=entries,
        folder=str(folder),
        source=str(folder),
        contents=f"{__name__}:ImageContents",
    )


def entries(folder: Path, sample_rate: int = 0) -> tuple[Path, list[Entry]]:
    """The folder and its images.

    Args:
        folder: Holds train and val.
        sample_rate: Of no use.

    Raises:
        UsageError: No such folder.
        DataError: It is laid out in another way, or has fewer than two classes.
    """
    layout = f"{folder}/train/CLASS and {folder}/val/CLASS with images ({', '.join(images.SUFFIXES)}) in each"
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Name one with {layout}.")
    listed = []
    for name, split in _SPLITS.items():
        if not (folder / name).is_dir():
            raise DataError(f"{folder}: has no folder {name}. Images lie in {layout}.")
        found, unlisted = find(folder / name)
        if unlisted:
            raise DataError(f"{folder / name / unlisted[0][0]}: {unlisted[0][1]}")
        files = [Path(file) for file in found if file.lower().endswith(images.SUFFIXES)]
        if loose := [file for file in files if len(file.parts) != 2]:
            raise DataError(
                f"{folder / name}: {len(loose)} of {len(files)} images lie in no folder of a class, such as "
                f"{loose[0]}. Images lie in {layout}."
            )
        if not files:
            raise DataError(f"{folder / name}: no images. They lie in {layout}.")
        listed += [index.entry(f"{name}/{file.as_posix()}", [file.parts[0]], split) for file in sorted(files)]
    classes = sorted({label for entry in listed for label in entry.labels if entry.split == "train"})
    if len(classes) < 2:
        raise DataError(f"{folder / 'train'}: images of one class ({classes[0]}); it takes two or more to tell apart.")
    return folder, listed


class ImageContents(Contents):
    """Contents of image files."""

    @staticmethod
    def inspect(path: Path) -> tuple[str, float, int, int]:
        """Decodes an image: digest of its pixels, and nothing of a sound."""
        return hashlib.sha256(np.asarray(images.read(path)).tobytes()).hexdigest(), 0.0, 0, 0


class ImageCache(ClipCache):
    """Decodes images anew each time, as the network sees them.

    Args:
        dataset: The images.
        config: Size and normalisation.
        recipe: How they are augmented.
        jobs: Threads; 0 means one a core.
    """

    def __init__(self, dataset: Dataset, config: ImageConfig, recipe: ImageRecipe, jobs: int) -> None:
        super().__init__(dataset, 0, jobs, 0)
        self._config, self._recipe = config, recipe
        self._mean, self._std = (np.asarray(values, np.float32)[:, None, None] for values in config.norm_stats)

    def read(self, clip: int, offset: float = 0.0) -> np.ndarray:
        """An image, normalised, [3, H, W] float32.

        Args:
            clip: Index of the image.
            offset: Above 0, it seeds the random view of training; 0 is the middle of the image, as it is tested.
        """
        image, size = images.read(self.dataset.root / self.dataset.files[clip]), self._config.vit.input_size
        if not offset:
            return self._normalised(middle(image, size))
        recipe, rng = self._recipe, np.random.default_rng([clip, int(offset * 2**24)])
        image = images.random_view(image, size, _AREA, rng)
        if recipe.rand_augment:
            image = augment.rand_augment(image, recipe.rand_augment, self._config.norm_stats[0], rng)
        x = self._normalised(image)
        return augment.erase(x, rng) if rng.random() < recipe.erasing else x

    def _normalised(self, image: Image.Image) -> np.ndarray:
        normalised: np.ndarray = (images.to_array(image) - self._mean) / self._std
        return normalised


def middle(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image whose shorter side is resized (bicubic) to 256/224 of the view's.

    Args:
        image: The image.
        size: Height and width of the view.
    """
    from PIL import Image

    scale = max(size[0] / image.height, size[1] / image.width) / _CROP
    width, height = (max(1, round(scale * side)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size[1]) // 2, (height - size[0]) // 2
    return resized.crop((left, top, left + size[1], top + size[0]))
