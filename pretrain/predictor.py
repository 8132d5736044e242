"""The predictor (M2D) or decoder (MSM-MAE): encoded visible patches → a prediction for every masked one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2d_bench.encoders.vit import Block, ViTConfig, sincos_positions
from m2d_bench.errors import UsageError
from m2d_bench.pretrain.masking import Mask


class Predictor(nn.Module):
    """A narrow transformer over encoded visible patches and mask tokens, with fixed 2-D sin-cos positions.

    Args:
        vit: Shape of the encoder.
        width: Its own width, a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads of a block.
        output: Numbers predicted for a patch.

    Raises:
        UsageError: A width that is no such multiple.

    Source: MAE (arXiv 2111.06377), decoder.
    """

    def __init__(self, vit: ViTConfig, *, width: int, depth: int, heads: int, output: int) -> None:
        super().__init__()
        if width % 4 or width % heads:
            raise UsageError(f"The predictor's width is a multiple of 4 and of its {heads} heads, got {width}.")
        self.embed = nn.Linear(vit.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, vit.grid_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, output)

    def tokens(self, encoded: Tensor, mask: Mask) -> Tensor:
        """Input of the blocks: class token, visible patches and mask tokens, with positions.

        Args:
            encoded: The encoder's output, class token first, [B, 1 + V, D].
            mask: The mask.

        Returns:
            [B, 1 + L, width], patches in the mask's order.
        """
        x = self.embed(encoded)
        masked = self.mask_token.to(x.dtype).expand(len(x), mask.masked.shape[1], -1)
        order = torch.cat([mask.visible, mask.masked], dim=1)
        positions = torch.cat([self.pos_embed[:, :1].expand(len(x), -1, -1), take(self.pos_embed[:, 1:], order)], dim=1)
        return torch.cat([x, masked], dim=1) + positions

    def predict(self, outputs: Tensor) -> Tensor:
        """Predictions from the blocks' outputs, [B, n, width] → [B, n, output]."""
        prediction: Tensor = self.pred(self.norm(outputs))
        return prediction


def take(patches: Tensor, indices: Tensor) -> Tensor:
    """Selects patches [B or 1, L, D] by indices [B, n] → [B, n, D]."""
    return patches.expand(len(indices), -1, -1).gather(1, indices[..., None].expand(-1, -1, patches.shape[-1]))
