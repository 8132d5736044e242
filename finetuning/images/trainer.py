"""What training on images does otherwise: it draws and mixes images, and smooths their labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from m2d_bench.finetuning.batches import Draws, StepSampler
from m2d_bench.finetuning.images.augment import draw_drop_path, draw_mix
from m2d_bench.finetuning.images.encoder import ImageBackbone, save
from m2d_bench.finetuning.recipe import ImageRecipe
from m2d_bench.finetuning.trainer import Trainer
from m2d_bench.randomness import generator_of
from m2d_bench.training.augment import mix


class ImageSampler(StepSampler):
    """Samples images and augmentations of each optimizer step."""

    recipe: ImageRecipe

    def draw(self, step: int) -> Draws:
        """The draws of an optimizer step, numbered from 0 over the whole training."""
        draws, recipe, vit = super().draw(step), self.recipe, self.encoder.config.vit
        count, generator = len(draws.clips), generator_of(*self.words, "images", step)
        share, box = draw_mix(vit.input_size, recipe.mixup, recipe.cutmix, generator)
        drop = recipe.drop_path
        return replace(
            draws,
            offsets=1 - draws.offsets,  # above 0
            partner=torch.arange(count).flip(0),
            share=torch.full((count,), share),
            crops=torch.tensor(box).expand(count, 4),
            kept=[draw_drop_path(count, vit.depth, drop, generator)] if drop else [],
        )


class ImageTrainer(Trainer):
    """A fine-tuning on images in progress. Args: as of `Trainer`."""

    backbone_type = ImageBackbone
    recipe: ImageRecipe

    def _augmented(self, draws: Draws, rows: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """This device's rows of images, mixed with their partners', [m, 3, H, W]."""
        device = self.fabric.device
        own, others = own.to(device), others.to(device)
        top, left, height, width = draws.crops[0].tolist()
        if height:
            own[..., top : top + height, left : left + width] = others[..., top : top + height, left : left + width]
            return own
        return mix(own, others, draws.share[rows].to(device))

    def _targets(self, draws: Draws) -> Tensor:
        """Labels of the whole batch, mixed and smoothed, [B, C] float32."""
        targets, smoothing = super()._targets(draws), self.recipe.label_smoothing
        return (1 - smoothing) * targets + smoothing / targets.shape[1]

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets)

    def _write(self, path: Path) -> None:
        save(self.evaluated, path)
