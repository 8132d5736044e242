"""The encoder of images with its head: read from a checkpoint, built as a recipe says, and written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Generator, Tensor, nn

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.classifier import Classifier, Head
from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.state_dict import ANCHOR, State, sort_keys
from m2d_bench.encoders.tensor_file import SUFFIXES, check_shapes
from m2d_bench.encoders.vit import ViT, ViTConfig
from m2d_bench.errors import CheckpointError, UsageError, brief
from m2d_bench.finetuning import network
from m2d_bench.finetuning.recipe import ImageRecipe
from m2d_bench.settings import replacing

logger = logging.getLogger(__name__)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels, by which MAE normalises."""

_HEAD = ("fc_norm.", "head.")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Everything that, with the weights, determines an embedding of an image.

    Args:
        name: Name of the model, for people.
        vit: Shape of the transformer.
        norm_stats: Mean and standard deviation of the pixels by channel.
    """

    name: str
    vit: ViTConfig
    norm_stats: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """An encoder of images as its file holds it.

    Args:
        config: Read from the tensors.
        state: Its tensors under the names of `vit.ViT`.
    """

    config: ImageConfig
    state: State

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's record says of it."""
        config = asdict(self.config)
        name = config.pop("name")
        return {"name": name, "digest": digest_of([config], self.state), "config": {"name": name, **config}}


class ImageEncoder(nn.Module):
    """Images → features. The last layer's normalisation is the head's first.

    Args:
        config: Its shape.
        pooling: See `ImageRecipe`.
    """

    def __init__(self, config: ImageConfig, pooling: Literal["mean", "class"]) -> None:
        super().__init__()
        self.config, self.pooling = config, pooling
        self.vit = ViT(config.vit)
        self.vit.norm = nn.Identity()  # type: ignore[assignment]

    def features(self, images: Tensor, branch_scales: Tensor | None = None) -> Tensor:
        """Mean of the last layer over the patches, or its class token, [B, D] float32.

        Args:
            images: Normalised, [B, 3, H, W].
            branch_scales: See `vit.ViT`.
        """
        last: Tensor = self.vit(self.vit.embed(images), branch_scales=branch_scales)[-1].float()
        return last[:, 0] if self.pooling == "class" else last[:, self.vit.n_class_tokens :].mean(1)

    def scene_embeddings(self, images: Tensor) -> Tensor:
        """Features of images wherever these are."""
        return self.features(images.to(self.vit.pos_embed.device))


class ImageBackbone(nn.Module):
    """The part of a classifier that is wrapped for several devices: images → features [B, D] float32."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """Features of normalised images [B, 3, H, W]; `kept` holds what drop path leaves, or nothing."""
        return self.encoder.features(images, *kept)


class ImageHead(Head):
    """Layer normalisation, then a linear layer: features [B, D] → logits [B, C].

    Source: MAE (arXiv 2111.06377), official code.
    """

    def __init__(self, features: int, n_classes: int) -> None:
        super().__init__(features, n_classes)
        self.norm = nn.LayerNorm(features, eps=1e-6)

    def initialise(self, generator: Generator) -> ImageHead:
        """Draws the weights, N(0, 2e-5), on the CPU; biases are 0."""
        super().initialise(generator)
        nn.init.normal_(self.linear.weight, std=2e-5, generator=generator)
        return self

    def state(self) -> dict[str, Tensor]:
        """Its tensors under the names of MAE's checkpoints."""
        parts = {"fc_norm": self.norm, "head": self.linear}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def read(model: str | os.PathLike[str]) -> Pretrained:
    """Reads an encoder of square images: what pre-training, this fine-tuning or MAE wrote.

    Raises:
        CheckpointError: The file cannot be read, or is no such encoder.
    """
    path = Path(model).expanduser()
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(
            f"{model}: no encoder of images. --model takes a file, such as the checkpoint-300.pth that m2d-bench "
            "pretrain --recipe m2d_image writes."
        )
    state = {key: value for key, value in checkpoint.read_state(path).items() if not key.startswith(_HEAD)}
    encoder, extras, _, _ = sort_keys(path, state)
    encoder = {key: value.float() for key, value in encoder.items()}
    try:
        config = ImageConfig(
            name=path.parent.name if path.suffix else path.name,
            vit=_shape(encoder),
            norm_stats=_norm_stats(path, extras),
        )
    except (UsageError, KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: not an encoder of square images: {brief(error)}.") from error
    with torch.device("meta"):
        expected = {key: value.shape for key, value in ImageEncoder(config, "mean").vit.state_dict().items()}
    check_shapes(path, _without_norm(encoder), expected)
    return Pretrained(config=config, state=encoder)


def _without_norm(encoder: State) -> State:
    return {key: value for key, value in encoder.items() if not key.startswith("norm.")}


def _shape(encoder: State) -> ViTConfig:
    width, channels, *patch = encoder[ANCHOR].shape
    if channels != 3 or len(patch) != 2:
        raise ValueError(f"its {ANCHOR} is {list(encoder[ANCHOR].shape)}, [width, 3, height, width] is expected")
    n_class_tokens = encoder["cls_token"].shape[1]
    n_patches = encoder["pos_embed"].shape[1] - n_class_tokens
    side = isqrt(max(0, n_patches))
    if not n_patches or side**2 != n_patches or patch[0] != patch[1]:
        raise ValueError(f"it has positions of {n_patches} patches of {patch[0]}×{patch[1]}, which make no square")
    return ViTConfig(
        width=width,
        depth=max(1, len({key.split(".")[1] for key in encoder if key.startswith("blocks.")})),
        patch_size=(patch[0], patch[1]),
        input_size=(side * patch[0], side * patch[1]),
        channels=channels,
        class_token=n_class_tokens > 0,
    )


def _norm_stats(path: Path, extras: State) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel; a single one counts for all channels."""
    if "norm_stats" not in extras:
        logger.warning("%s: no norm_stats inside; those of ImageNet are used, as MAE does.", path)
        return _IMAGENET
    stats = extras["norm_stats"].double()
    if stats.shape not in ((2,), (2, 3)) or not stats.isfinite().all() or not (stats[1] > 0).all():
        raise ValueError(f"its norm_stats are {stats.tolist()}, mean and deviation above 0 are expected")
    mean, std = (tuple(round(value, 6) for value in row) for row in stats.view(2, -1).expand(2, 3).tolist())
    return mean, std


def build(pretrained: Pretrained, recipe: ImageRecipe, labels: Labels, generator: Generator) -> Classifier:
    """Builds the classifier that a recipe trains.

    Args:
        pretrained: The pre-trained model.
        recipe: What is frozen, and what is pooled.
        labels: What the head is to tell apart.
        generator: Draws the head, and low-rank updates.

    Raises:
        UsageError: The class token of a model that has none.
    """
    config = pretrained.config
    if recipe.pooling == "class" and not config.vit.class_token:
        raise UsageError(f"pooling=class: {config.name} has no class token; it takes pooling=mean.")
    encoder: Any = ImageEncoder(config, recipe.pooling)
    norm = {key.removeprefix("norm."): value for key, value in pretrained.state.items() if key.startswith("norm.")}
    encoder.vit.load_state_dict(_without_norm(pretrained.state))
    head = ImageHead(config.vit.width, len(labels.classes)).initialise(generator)
    if recipe.pooling == "class" and norm:
        head.norm.load_state_dict(norm)
    network.set_trained(encoder.vit, recipe, generator)
    encoder.vit.pos_embed.requires_grad_(not recipe.lora_rank)
    return Classifier(encoder, head, labels)


@torch.no_grad()
def save(classifier: Classifier, path: Path) -> None:
    """Writes encoder, head and norm_stats under the names of MAE's checkpoints, and the names of the classes."""
    encoder: Any = classifier.encoder
    state = {**network.merged_state(encoder.vit), **classifier.head.state()}
    state["norm_stats"] = torch.tensor(encoder.config.norm_stats)
    labels = {"classes": json.dumps(classifier.labels.classes)}
    with replacing(path) as file:
        file.write(safetensors.torch.save({key: value.cpu().contiguous() for key, value in state.items()}, labels))
