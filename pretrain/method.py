"""What a pre-training method is: a module of an encoder and a predictor whose step takes a batch and returns losses.

A method is a module in `pretrain.methods` of the same name: a frozen dataclass `Arguments` and a class `Method`.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2d_bench.encoders.vit import ViT, ViTConfig, initialise
from m2d_bench.pretrain import methods
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.flops import count_flops
from m2d_bench.pretrain.masking import Mask, draw
from m2d_bench.pretrain.predictor import Predictor
from m2d_bench.registry import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StepResult(NamedTuple):
    """What a step over a batch returns.

    Args:
        losses: Scalars by name, all of them logged; `loss` is minimised, others are its parts.
        prediction: Predictions of the masked patches, [B, M, P], without gradient.
        target: What they are compared with, standardised per patch, [B, M, P], without gradient; None where a training
            leaves that loss out.
        mask: The mask.
    """

    losses: dict[str, Tensor]
    prediction: Tensor
    target: Tensor | None
    mask: Mask


class MaskedModel(nn.Module, ABC):
    """Base of the methods. A frozen teacher is no part of it: it gives `Batch.teacher_features` and is never saved.

    Args:
        vit: Shape of the encoder.
        arguments: The method's `Arguments`; `mask_ratio`, `masking` and the predictor's shape are read here.
    """

    family: str
    """Prefix of the names of its checkpoints."""

    def __init__(self, vit: ViTConfig, arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.encoder = ViT(vit)
        self.predictor = Predictor(
            vit,
            width=arguments.predictor_width,
            depth=arguments.predictor_depth,
            heads=arguments.predictor_heads,
            output=self.output_width(vit),
        )
        self.checkpoint_activations = False

    @staticmethod
    @abstractmethod
    def output_width(vit: ViTConfig) -> int:
        """Numbers the predictor gives for a patch."""

    @abstractmethod
    def forward(self, batch: Batch, mask: Mask) -> StepResult:
        """One training step, without the optimizer.

        Args:
            batch: What the method learns from.
            mask: Which patches are visible, on the batch's device.
        """

    def draw_mask(self, batch: int, generator: Generator | None = None) -> Mask:
        """Draws a mask for so many samples, on the CPU."""
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
        """Called after each optimizer step, such as for the EMA of a target encoder.

        Args:
            progress: Share of the training that is done, from 0 to 1.

        Returns:
            Scalars to log.
        """
        return {}

    @abstractmethod
    def picture(self, x: Tensor, result: StepResult) -> Figure:
        """Draws what a step over a few samples did.

        Args:
            x: Input of the step, [B, C, F, T], normalised.
            result: The step's result.
        """

    def flops(self) -> int:
        """Model FLOPs of training on one sample of the encoder's input size, forward and backward.

        Work that is repeated to save memory is not counted: utilisation is of what the model needs.
        """
        with torch.device("meta"):
            model = type(self)(self.encoder.config, self.arguments)
            batch, mask = model.example_batch(), model.draw_mask(1)
            return count_flops(lambda: model(batch, mask).losses["loss"].backward())

    def example_batch(self) -> Batch:
        """A batch of one sample of the encoder's input size, its values of no meaning."""
        vit = self.encoder.config
        index = torch.zeros(1, dtype=torch.int64)
        return Batch(log_mel=torch.zeros(1, vit.channels, *vit.input_size), clips=index, starts=index)

    def encode(self, tokens: Tensor) -> Tensor:
        """Encodes patch tokens with positions, [B, n, D] → [B, 1 + n, D], class token first."""
        encoded: Tensor = self.encoder.norm(self.run(self.encoder.blocks, self.with_class(tokens)))
        return encoded

    def predict(self, encoded: Tensor, mask: Mask) -> Tensor:
        """Predicts the masked patches from the encoder's output, [B, 1 + V, D] → [B, M, P]."""
        outputs = self.run(self.predictor.blocks, self.predictor.tokens(encoded, mask))
        return self.predictor.predict(outputs[:, 1 + mask.visible.shape[1] :])

    def with_class(self, tokens: Tensor) -> Tensor:
        """Prepends the class token to patch tokens, [B, n, D] → [B, 1 + n, D]."""
        cls_token = self.encoder.cls_token + self.encoder.pos_embed[:, :1]
        return torch.cat([cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Runs blocks, with activation checkpointing where it is set."""
        for block in blocks:
            recompute = self.checkpoint_activations and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


def standardised(values: Tensor) -> Tensor:
    """Standardises each patch to zero mean and unit variance, [..., P]: (x − mean) / √(var + 1e-6), unbiased variance.

    Source: MAE (arXiv 2111.06377), normalised pixel loss; M2D (2023), section 3.
    """
    values = values.float()
    return (values - values.mean(-1, keepdim=True)) / (values.var(-1, keepdim=True) + 1e-6).sqrt()


def names() -> list[str]:
    """Names of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def build(name: str, vit: ViTConfig, arguments: Mapping[str, Any]) -> MaskedModel:
    """Builds a method by name, its weights not yet drawn.

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
    model: MaskedModel = module.Method(vit, module.Arguments(**arguments))
    return model


def arguments_of(name: str) -> type[Any]:
    """The class of a method's arguments."""
    arguments: type[Any] = _module(name).Arguments
    return arguments


def _module(name: str) -> Any:
    if name not in names():
        raise unknown("method", name, names(), f"these: {', '.join(names())}")
    return import_module(f"{methods.__name__}.{name}")
