"""What a pre-training method is: a module that holds an encoder and a predictor, and whose step returns a result.

A method is a module of `pretrain.methods` that bears its name: a frozen dataclass `Arguments`, a class `Method`.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2d_bench.encoders.vit import ViT, ViTConfig, initialise
from m2d_bench.pretrain import methods
from m2d_bench.pretrain.flops import Branch, encoder_branches, predictor_branch, training_flops
from m2d_bench.pretrain.masking import Mask, draw, n_visible
from m2d_bench.pretrain.predictor import Predictor
from m2d_bench.registry import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StepResult(NamedTuple):
    """What a step over a batch gives.

    Args:
        loss: Scalar.
        metrics: Further scalars to log, without gradient.
        prediction: Of the masked patches, [B, M, P].
        target: What they are compared with, standardised per patch, [B, M, P], without gradient.
        mask: The mask.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    prediction: Tensor
    target: Tensor
    mask: Mask


class MaskedModel(nn.Module, ABC):
    """Base of the methods.

    Args:
        vit: Shape of the encoder.
        arguments: The method's `Arguments`; `mask_ratio` and `masking` are read here.
        predictor: Its width, depth and heads, and the numbers it predicts for a patch.
    """

    family: str
    """Begins the names of its checkpoints."""

    def __init__(self, vit: ViTConfig, arguments: Any, *, predictor: Mapping[str, int]) -> None:
        super().__init__()
        self.arguments = arguments
        self.encoder = ViT(vit)
        self.predictor = Predictor(vit, **predictor)
        self.checkpoint_activations = False

    @abstractmethod
    def forward(self, x: Tensor, mask: Mask) -> StepResult:
        """One step.

        Args:
            x: Normalised input, [B, C, F, T].
            mask: Which patches are visible, on the input's device.
        """

    def draw_mask(self, batch: int, generator: Generator | None = None) -> Mask:
        """A mask for a batch, on the CPU."""
        grid_size = self.encoder.config.grid_size
        return draw(self.arguments.masking, batch, grid_size, self.arguments.mask_ratio, generator)

    def initialise(self, generator: Generator) -> None:
        """Draws fresh weights: Xavier uniform for linear layers and the patch projection, N(0, 0.02) for tokens.

        Source: MAE (arXiv 2111.06377), official initialisation.
        """
        initialise(self.encoder, generator)
        for module in self.predictor.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.predictor.mask_token, std=0.02, generator=generator)

    @torch.no_grad()
    def after_step(self, progress: float) -> dict[str, float]:
        """What has to be done after an optimizer step, such as moving a target network.

        Args:
            progress: Share of the training that is done, from 0 to 1.

        Returns:
            Scalars to log.
        """
        return {}

    @abstractmethod
    def picture(self, x: Tensor, result: StepResult) -> Figure:
        """What the step over a few samples did, drawn."""

    def branches(self, masked: int) -> list[Branch]:
        """What a step computes besides encoder and predictor, of a sample with so many masked patches."""
        return []

    def flops(self) -> int:
        """Model FLOPs of training on a sample of the encoder's input size."""
        vit, predictor = self.encoder.config, self.predictor
        visible = n_visible(prod(vit.grid_size), self.arguments.mask_ratio)
        masked = prod(vit.grid_size) - visible
        predicts = predictor_branch(
            encoder_width=vit.width,
            width=predictor.embed.out_features,
            depth=len(predictor.blocks),
            visible=visible,
            masked=masked,
            output_width=predictor.pred.out_features,
        )
        return training_flops([*encoder_branches(vit, visible), predicts, *self.branches(masked)])

    def encode(self, tokens: Tensor) -> Tensor:
        """Patch tokens with positions [B, n, D] → the encoder's output, class token first, [B, 1 + n, D]."""
        return self.encoder.norm(self.run(self.encoder.blocks, self.with_class(tokens)))

    def predict(self, encoded: Tensor, mask: Mask) -> Tensor:
        """The encoder's output [B, 1 + V, D] → predictions of the masked patches, [B, M, P]."""
        outputs = self.run(self.predictor.blocks, self.predictor.tokens(encoded, mask))
        return self.predictor.predict(outputs[:, 1 + mask.visible.shape[1] :])

    def with_class(self, tokens: Tensor) -> Tensor:
        """The class token before patch tokens: [B, n, D] → [B, 1 + n, D]."""
        cls_token = self.encoder.cls_token + self.encoder.pos_embed[:, :1]
        return torch.cat([cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def run(self, blocks: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> Tensor:
        """Runs blocks, without keeping their activations where that is asked for."""
        for block in blocks:
            again = self.checkpoint_activations and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x


def standardised(values: Tensor) -> Tensor:
    """Each patch with zero mean and unit variance: [..., P]; (x − mean) / √(var + 1e-6), unbiased.

    Source: MAE (arXiv 2111.06377), normalised pixel loss; M2D (2023), section 3.
    """
    values = values.float()
    return (values - values.mean(-1, keepdim=True)) / (values.var(-1, keepdim=True) + 1e-6).sqrt()


def names() -> list[str]:
    """The methods there are."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def build(name: str, vit: ViTConfig, arguments: Mapping[str, Any]) -> MaskedModel:
    """A method by name, its weights not yet drawn.

    Args:
        name: One of `names`.
        vit: Shape of the encoder.
        arguments: Fields of its `Arguments`.

    Raises:
        UsageError: Unknown method or argument.
    """
    module = _module(name)
    allowed = [field.name for field in fields(module.Arguments)]
    for argument in arguments:
        if argument not in allowed:
            raise unknown(f"argument of {name}", argument, allowed, f"these: {', '.join(allowed)}")
    found: MaskedModel = module.Method(vit, module.Arguments(**arguments))
    return found


def arguments_of(name: str) -> type[Any]:
    """The class of a method's arguments."""
    arguments: type[Any] = _module(name).Arguments
    return arguments


def _module(name: str) -> Any:
    if name not in names():
        raise unknown("method", name, names(), f"these: {', '.join(names())}")
    return import_module(f"{methods.__name__}.{name}")
