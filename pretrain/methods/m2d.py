"""Masked Modeling Duo: predicts what a slowly moving copy of the encoder says of the masked patches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.pretrain import pictures
from m2d_bench.pretrain.flops import Branch, target_branch
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import MaskedModel, StepResult, standardised
from m2d_bench.pretrain.predictor import take
from m2d_bench.values import Checked, Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Decay = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Arguments(Checked):
    """Of M2D.

    Args:
        mask_ratio: Share of the patches that is masked.
        masking: uniform, structured or spans.
        target_input: What the target encoder sees: `masked` patches alone (M2D), or `all` of them (the conventional
            way, as in data2vec).
        predictor_width: Of the predictor.
        predictor_depth: Blocks of the predictor.
        predictor_heads: Attention heads of such a block.
        ema_decay_start: Decay of the target's moving average at the first step.
        ema_decay_end: At the last one; linear between.

    Source: M2D (2023), sections 3 and 4.1.
    """

    mask_ratio: Share = 0.7
    masking: str = "uniform"
    target_input: Literal["masked", "all"] = "masked"
    predictor_width: PositiveInt = 512
    predictor_depth: PositiveInt = 8
    predictor_heads: PositiveInt = 16
    ema_decay_start: Decay = 0.99995
    ema_decay_end: Decay = 0.99999


class Method(MaskedModel):
    """Online encoder and predictor against a target encoder, the moving average of the online blocks and final norm.

    The target shares patch embedding, class token and positions with the online encoder, without gradient.
    """

    def __init__(self, vit: ViTConfig, arguments: Arguments) -> None:
        predictor = {
            "width": arguments.predictor_width,
            "depth": arguments.predictor_depth,
            "heads": arguments.predictor_heads,
            "output": vit.width,
        }
        super().__init__(vit, arguments, predictor=predictor)
        self.family = "m2d" if arguments.target_input == "masked" else "m2d_d2v"
        self.target_blocks = copy.deepcopy(self.encoder.blocks).requires_grad_(False)
        self.target_norm = copy.deepcopy(self.encoder.norm).requires_grad_(False)

    def initialise(self, generator: Generator) -> None:
        """Draws fresh weights; the target begins as a copy of the online encoder."""
        super().initialise(generator)
        self.target_blocks.load_state_dict(self.encoder.blocks.state_dict())
        self.target_norm.load_state_dict(self.encoder.norm.state_dict())

    def forward(self, x: Tensor, mask: Mask) -> StepResult:
        """One step; see `MaskedModel.forward`."""
        tokens = self.encoder.embed(x)
        prediction = self.predict(self.encode(take(tokens, mask.visible)), mask).float()
        target = standardised(self.target(tokens.detach(), mask))
        return StepResult(target_loss(prediction, target), {}, prediction.detach(), target, mask)

    def branches(self, masked: int) -> list[Branch]:
        """The target encoder's."""
        vit = self.encoder.config
        return [target_branch(vit, masked if self.arguments.target_input == "masked" else prod(vit.grid_size))]

    def picture(self, x: Tensor, result: StepResult) -> Figure:
        """Input, visible patches and the error of each prediction."""
        return pictures.error_map(x, result, self.encoder.config.patch_size)

    @torch.no_grad()
    def target(self, tokens: Tensor, mask: Mask) -> Tensor:
        """What the target encoder says of the masked patches.

        Args:
            tokens: All patch tokens with positions, [B, L, D].
            mask: The mask.

        Returns:
            [B, M, D].
        """
        if self.arguments.target_input == "masked":
            tokens = take(tokens, mask.masked)
        outputs = self.target_norm(self.run(self.target_blocks, self.with_class(tokens)))[:, 1:]
        return outputs if self.arguments.target_input == "masked" else take(outputs, mask.masked)

    @torch.no_grad()
    def after_step(self, progress: float) -> dict[str, float]:
        """Moves the target: ξ ← τ·ξ + (1 − τ)·θ, τ linear over the training."""
        start, end = self.arguments.ema_decay_start, self.arguments.ema_decay_end
        decay = start + (end - start) * progress
        online = [*self.encoder.blocks.parameters(), *self.encoder.norm.parameters()]
        target = [*self.target_blocks.parameters(), *self.target_norm.parameters()]
        torch._foreach_lerp_(target, online, 1 - decay)
        return {"ema_decay": decay}


def target_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit vectors between predictions and standardised targets.

    Args:
        prediction: At masked patches, [B, M, D].
        target: At the same, standardised, [B, M, D].

    Returns:
        Scalar from 0 to 4: 2 − 2·cos, mean over patches and batch.

    Source: M2D (2023), eq. 2.
    """
    return 2 - 2 * cosine_similarity(prediction, target, dim=-1).mean()
