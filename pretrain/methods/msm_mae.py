"""MSM-MAE: predicts the pixels of masked spectrogram patches (arXiv 2204.12260)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import mse_loss

from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.pretrain import pictures
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import MaskedModel, StepResult, standardised
from m2d_bench.pretrain.patches import to_patches
from m2d_bench.pretrain.predictor import take
from m2d_bench.values import Checked, Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Arguments(Checked):
    """Arguments of MSM-MAE.

    Args:
        mask_ratio: Share of the patches that is masked.
        masking: uniform, structured or spans.
        predictor_width: Embedding width of the decoder.
        predictor_depth: Blocks of the decoder.
        predictor_heads: Attention heads of a decoder block.

    Source: M2D (2023), section 4.1.
    """

    mask_ratio: Share = 0.75
    masking: str = "uniform"
    predictor_width: PositiveInt = 384
    predictor_depth: PositiveInt = 4
    predictor_heads: PositiveInt = 6


class Method(MaskedModel):
    """Masked autoencoder whose decoder predicts the standardised pixels of masked patches."""

    family = "msm_mae"

    @staticmethod
    def output_width(vit: ViTConfig) -> int:
        return vit.channels * prod(vit.patch_size)

    def forward(self, batch: Batch, mask: Mask) -> StepResult:
        x, vit = batch.log_mel, self.encoder.config
        encoded = self.encode(take(self.encoder.embed(x), mask.visible))
        prediction = self.predict(encoded, mask).float()
        whole = x[..., : vit.grid_size[1] * vit.patch_size[1]]  # the input may end in a part of a patch
        target = standardised(take(to_patches(whole, vit.patch_size), mask.masked))
        return StepResult({"loss": mse_loss(prediction, target)}, prediction.detach(), target, mask)

    def picture(self, x: Tensor, result: StepResult) -> Figure:
        return pictures.reconstruction(x, result, self.encoder.config.patch_size)
