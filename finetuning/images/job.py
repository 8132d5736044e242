"""Fine-tuning on one task of images."""

from __future__ import annotations

import os
from typing import Any

from torch import Generator

from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.classifier import Classifier
from m2d_bench.finetuning.images import encoder
from m2d_bench.finetuning.images.data import ImageCache
from m2d_bench.finetuning.images.trainer import ImageSampler, ImageTrainer
from m2d_bench.finetuning.job import Job
from m2d_bench.finetuning.recipe import ImageRecipe
from m2d_bench.finetuning.settings import FinetuneSettings


class ImageJob(Job):
    """One task of images: a training for each seed."""

    recipe_type = ImageRecipe
    sampler_type = ImageSampler
    trainer_type = ImageTrainer
    recipe: ImageRecipe

    @staticmethod
    def read_model(model: str | os.PathLike[str], settings: FinetuneSettings) -> encoder.Pretrained:
        """The pre-trained encoder of images in a file."""
        return encoder.read(model)

    @property
    def sample_rate(self) -> int:
        """Images have none."""
        return 0

    @property
    def encoder_facts(self) -> dict[str, Any]:
        """What the record says of the pre-trained model."""
        facts: dict[str, Any] = self.pretrained.facts
        return facts

    @property
    def view(self) -> dict[str, Any]:
        """What the record's settings say of an image beside the recipe."""
        return {"image_size": self.pretrained.config.vit.input_size}

    def cache(self) -> ImageCache:
        """The images, decoded."""
        return ImageCache(self.dataset, self.pretrained.config, self.recipe, self.settings.jobs)

    def classifier(self, labels: Labels, generator: Generator) -> tuple[Classifier, int]:
        """What is trained, with fresh weights where they are drawn, and the width of its input."""
        classifier = encoder.build(self.pretrained, self.recipe, labels, generator)
        return classifier, self.pretrained.config.vit.input_size[1]
