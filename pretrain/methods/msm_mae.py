"""MSM-MAE: predicts the pixels of masked spectrogram patches (arXiv 2204.12260)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from torch import Tensor

from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.pretrain import pictures
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import MaskedModel, StepResult, standardised
from m2d_bench.pretrain.patches import to_patches
from m2d_bench.pretrain.predictor import take
from m2d_bench.values import Checked, Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Arguments(Checked):
    """Of MSM-MAE.

    Args:
        mask_ratio: Share of the patches that is masked.
        masking: uniform, structured or spans.
        predictor_width: Of the decoder.
        predictor_depth: Blocks of the decoder.
        predictor_heads: Attention heads of such a block.

    Source: M2D (2023), section 4.1.
    """

    mask_ratio: Share = 0.75
    masking: str = "uniform"
    predictor_width: PositiveInt = 384
    predictor_depth: PositiveInt = 4
    predictor_heads: PositiveInt = 6


class Method(MaskedModel):
    """Masked autoencoder whose targets are the pixels of each patch, standardised."""

    family = "msm_mae"

    def __init__(self, vit: ViTConfig, arguments: Arguments) -> None:
        decoder = {
            "width": arguments.predictor_width,
            "depth": arguments.predictor_depth,
            "heads": arguments.predictor_heads,
            "output": vit.channels * vit.patch_size[0] * vit.patch_size[1],
        }
        super().__init__(vit, arguments, predictor=decoder)

    def forward(self, x: Tensor, mask: Mask) -> StepResult:
        """One step; see `MaskedModel.forward`. The loss is the mean squared error over masked patches."""
        encoded = self.encode(take(self.encoder.embed(x), mask.visible))
        prediction = self.predict(encoded, mask).float()
        vit = self.encoder.config
        whole = x[..., : vit.grid_size[1] * vit.patch_size[1]]  # the input may end in a part of a patch
        target = standardised(take(to_patches(whole, vit.patch_size), mask.masked))
        return StepResult((prediction - target).square().mean(), {}, prediction.detach(), target, mask)

    def picture(self, x: Tensor, result: StepResult) -> Figure:
        """Input, visible patches and the reconstruction."""
        return pictures.reconstruction(x, result, self.encoder.config.patch_size)
