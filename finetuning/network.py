"""The network of a fine-tuning: the encoder as its recipe configures it, LoRA updates, a head, and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from m2d_bench.encoders.checkpoint import Checkpoint, Labels, with_input
from m2d_bench.encoders.classifier import Classifier, Head
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.patchout import encode_kept
from m2d_bench.encoders.state_dict import State
from m2d_bench.encoders.vit import ViT
from m2d_bench.errors import UsageError
from m2d_bench.finetuning.recipe import Recipe


class Backbone(nn.Module):
    """The part of a classifier that is wrapped for several devices: log-mel spectrograms → features [B, D] float32."""

    def __init__(self, encoder: M2DEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, log_mel: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """Mean of the last layer over time, or over the patches that stay.

        Args:
            log_mel: Normalised, [B, 1, 80, frames].
            kept: See `patchout.encode_kept`; empty without patchout.
        """
        if kept:
            return encode_kept(self.encoder, log_mel, kept, last_only=True)[0].mean(1)
        frames = torch.full((len(log_mel),), log_mel.shape[-1])
        return self.encoder.encode_log_mel(log_mel, frames, last_only=True)[0].mean(1)


class LowRank(nn.Module):
    """W → W + scale · B·A of a linear layer, A drawn and B zero at first.

    Source: LoRA (arXiv 2106.09685), section 4.1.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: Generator) -> None:
        super().__init__()
        width = weight.shape[1]
        self.a = nn.Parameter(torch.empty(rank, width).normal_(std=width**-0.5, generator=generator))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


def build(pretrained: Checkpoint, recipe: Recipe, labels: Labels, frames: int, generator: Generator) -> Classifier:
    """Builds the classifier that a recipe trains.

    Args:
        pretrained: The pre-trained model.
        recipe: What is frozen, and how positions and features are.
        labels: What the head is to tell apart.
        frames: Frames of a clip's spectrogram.
        generator: Draws the head, and low-rank updates.
    """
    encoder = _adjusted(pretrained, recipe, frames)
    head = Head(encoder.scene_embedding_size, len(labels.classes)).initialise(generator)
    set_trained(encoder.vit, recipe, generator)
    encoder.vit.pos_embed.requires_grad_(False)
    return Classifier(encoder, head, labels)


def set_trained(vit: ViT, recipe: Recipe, generator: Generator) -> None:
    """Freezes what the recipe does not train of an encoder, and adds low-rank updates where it trains these."""
    vit.requires_grad_(not recipe.lora_rank)
    if recipe.freeze_patch_embed:
        vit.patch_embed.requires_grad_(False)
    if recipe.lora_rank:
        for module in vit.blocks.modules():
            if isinstance(module, nn.Linear):
                scale = recipe.lora_alpha / recipe.lora_rank
                update = LowRank(module.weight, recipe.lora_rank, scale, generator)
                parametrize.register_parametrization(module, "weight", update)


def _adjusted(pretrained: Checkpoint, recipe: Recipe, frames: int) -> M2DEncoder:
    """The encoder with the recipe's features and, where it says so, an input size of the whole clip."""
    found = replace(pretrained, config=replace(pretrained.config, features=recipe.features))
    return M2DEncoder.from_checkpoint(with_input(found, frames) if recipe.adjust_positions else found)


def merged(classifier: Classifier) -> Checkpoint:
    """What is saved of a classifier."""
    state = merged_state(classifier.encoder.vit)
    head = {key: value.cpu() for key, value in classifier.head.state().items()}
    return Checkpoint(config=classifier.encoder.config, encoder=state, head=head, labels=classifier.labels)


@torch.no_grad()
def merged_state(vit: ViT) -> State:
    """An encoder's weights on the CPU, low-rank updates added to those they are of."""
    state = {key: value for key, value in vit.state_dict().items() if ".parametrizations." not in key}
    for name, module in vit.named_modules():
        if parametrize.is_parametrized(module):
            state[f"{name}.weight"] = module.weight
    return {key: value.cpu() for key, value in state.items()}


def optimizer(classifier: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; each group holds under `scale` its share of the learning rate.

    Raises:
        UsageError: LARS without the package that holds it.
    """
    groups = list(_groups(classifier, recipe))
    decay = recipe.weight_decay
    if recipe.optimizer == "adamw":
        betas = (recipe.beta1, recipe.beta2)
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, weight_decay=decay, amsgrad=recipe.amsgrad)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, weight_decay=decay)
    try:
        from pytorch_optimizer import LARS
    except ModuleNotFoundError:
        raise UsageError("LARS needs pytorch-optimizer. Run pip install 'm2d-bench[finetune]'.") from None
    return LARS(groups, lr=0.0, momentum=recipe.momentum, weight_decay=decay)


def _groups(classifier: Classifier, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Trained parameters by layer: what comes before the blocks lies below them, head and last norm above.

    Source: BEiT (arXiv 2106.08254), layer-wise learning-rate decay.
    """
    depth = classifier.encoder.config.vit.depth
    layers: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, tokens = depth + 1, ("encoder.vit.cls_token", "encoder.vit.pos_embed")
        if name.startswith("encoder.vit.blocks."):
            layer = int(name.split(".")[3]) + 1
        elif name.startswith(("encoder.vit.patch_embed", *tokens)):
            layer = 0
        spared = recipe.spares_vectors and (parameter.ndim == 1 or name in tokens)
        layers.setdefault((0 if recipe.layer_decay == 1 else layer, spared), []).append(parameter)
    for (layer, spared), parameters in sorted(layers.items()):
        scale = 1.0 if recipe.layer_decay == 1 else recipe.layer_decay ** (depth + 1 - layer)
        yield {"params": parameters, "scale": scale, **({"weight_decay": 0.0} if spared else {})}
