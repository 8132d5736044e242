"""The Vision Transformer of the family, all of it in this file: patch embedding, positions, blocks.

Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

from m2d_bench.errors import UsageError

HEAD_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of a Vision Transformer.

    Args:
        width: Embedding width D, a multiple of 64 (the width of an attention head).
        depth: Number of blocks.
        patch_size: (frequency, time) of a patch, in mel bins and frames.
        input_size: (frequency, time) the positional embedding was made for; time may be no multiple of the patch.
        channels: Input channels: 1 for audio.
        class_token: Whether a class token stands before the patches; MSM-MAE of 2022 has none.
    """

    width: int
    depth: int
    patch_size: tuple[int, int]
    input_size: tuple[int, int]
    channels: int = 1
    class_token: bool = True

    def __post_init__(self) -> None:
        if self.width % HEAD_WIDTH or self.width < HEAD_WIDTH:
            raise UsageError(f"Width must be a multiple of {HEAD_WIDTH}, got {self.width}.")
        (freq, time), (patch_freq, patch_time) = self.input_size, self.patch_size
        if patch_freq < 1 or patch_time < 1 or freq % patch_freq or time < patch_time:
            raise UsageError(
                f"Patches of {patch_freq}×{patch_time} do not tile an input of {freq}×{time}: the patch's frequency "
                "size must divide the input's, and the input must hold at least one patch in time."
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches in (frequency, time): N_F, N_T."""
        return self.input_size[0] // self.patch_size[0], self.input_size[1] // self.patch_size[1]


SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}
"""Width and depth of the named sizes."""


def sincos_positions(width: int, grid_size: tuple[int, int]) -> Tensor:
    """Fixed 2-D sin-cos positional embedding, zeros for the class token in front.

    Args:
        width: Embedding width D, a multiple of 4.
        grid_size: Patches in (frequency, time).

    Returns:
        [1, 1 + N_F·N_T, D], patches frequency-major; the first half of D codes time, the second frequency.

    Source: MAE (arXiv 2111.06377), official positional embedding.
    """

    def encode(coordinate: Tensor) -> Tensor:
        omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        angles = coordinate.flatten()[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    freq, time = (torch.arange(n, dtype=torch.float64) for n in grid_size)
    freq_grid, time_grid = torch.meshgrid(freq, time, indexing="ij")
    patches = torch.cat([encode(time_grid), encode(freq_grid)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches]).float()[None]


def fit_columns(grid: Tensor, columns: int) -> Tensor:
    """Positions of a grid [N_F, N_T, D] for another number of patch columns, [N_F, columns, D].

    A narrower grid takes the first columns; a wider one is resized (bicubic, antialiased).
    """
    if columns <= grid.shape[1]:
        return grid[:, :columns]
    resized = interpolate(grid.permute(2, 0, 1)[None], (len(grid), columns), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0)


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches: [B, C, F, T] → [B, N_F, N_T, D]."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x)
        return patches.permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head self-attention; `key_mask` [B, L] is True where a token may be attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        x = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.proj(x.transpose(1, 2).reshape(batch, length, width))
        return projected


class MLP(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(gelu(self.fc1(x)))
        return output


class Block(nn.Module):
    """Pre-norm transformer block; `scales` [B, 2] multiply what attention and MLP add."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, key_mask: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
        attention: Tensor = self.attn(self.norm1(x), key_mask)
        x = x + (attention if scales is None else scales[:, 0, None, None] * attention)
        mlp: Tensor = self.mlp(self.norm2(x))
        return x + (mlp if scales is None else scales[:, 1, None, None] * mlp)


class ViT(nn.Module):
    """Encoder of the family: patch embedding, fixed positions, class token, blocks, final norm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.n_class_tokens = int(config.class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, self.n_class_tokens, config.width))
        positions = sincos_positions(config.width, config.grid_size)[:, 1 - self.n_class_tokens :]
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(Block(config.width, config.width // HEAD_WIDTH) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.float()  # whatever torch's default is: fresh weights are the same

    def positions(self, columns: int) -> Tensor:
        """Positional embedding of a grid of `columns` patch columns, [N_F, columns, D]."""
        return fit_columns(self.pos_embed[0, self.n_class_tokens :].view(*self.config.grid_size, -1), columns)

    def embed(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Patch tokens with positions, without the class token.

        Args:
            x: [B, C, F, T], normalised.
            positions: [N_F, T // patch, D] or one such grid for each sample; the grid's own if None.

        Returns:
            [B, N_F·N_T, D], frequency-major.
        """
        patches: Tensor = self.patch_embed(x)
        positions = self.positions(patches.shape[2]) if positions is None else positions
        return (patches + positions).flatten(1, 2)

    def forward(
        self, tokens: Tensor, key_mask: Tensor | None = None, branch_scales: Tensor | None = None
    ) -> list[Tensor]:
        """Runs the blocks over patch tokens.

        Args:
            tokens: Any subset of patch tokens with positions, [B, L, D].
            key_mask: [B, L], True where a token is real; None if all are.
            branch_scales: Of each block, factors of what attention and MLP add, [B, depth, 2]; None for 1.

        Returns:
            Output of every block, [B, 1 + L, D] each, class token (if any) first; the last one after the final norm.
        """
        cls_token = (self.cls_token + self.pos_embed[:, : self.n_class_tokens]).expand(len(tokens), -1, -1)
        x = torch.cat([cls_token, tokens], dim=1)
        if key_mask is not None:
            key_mask = nn.functional.pad(key_mask, (self.n_class_tokens, 0), value=True)
        outputs = []
        for number, block in enumerate(self.blocks):
            x = block(x, key_mask, None if branch_scales is None else branch_scales[:, number])
            outputs.append(x)
        outputs[-1] = self.norm(x)
        return outputs


def initialise(vit: ViT, generator: torch.Generator) -> ViT:
    """Draws fresh weights: Xavier uniform for linear layers and the patch projection, N(0, 0.02) for the class token.

    Source: MAE (arXiv 2111.06377) and M2D (2023), implementation details.
    """
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    nn.init.normal_(vit.cls_token, std=0.02, generator=generator)
    return vit
