"""Pictures of a training step: what MSM-MAE reconstructs, and where M2D's predictions err."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from m2d_bench.errors import UsageError
from m2d_bench.pretrain.patches import from_patches, to_patches
from m2d_bench.settings import replacing

if TYPE_CHECKING:  # matplotlib is an extra: loaded by the functions that draw
    from matplotlib.figure import Figure

    from m2d_bench.pretrain.method import StepResult

SAMPLES = 4
"""Rows of a picture at most: the first samples of the batch."""

_GREY = "0.75"
_SETTINGS = {
    "axes.titlesize": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a picture is the same on every machine
    "font.size": 9,
    "savefig.dpi": 110,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def check_installed() -> None:
    """Raises a UsageError, before any work is done, where pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise UsageError("Pictures need matplotlib, which is not installed. Run pip install 'm2d-bench[plots]'.")


def reconstruction(x: Tensor, result: StepResult, patch_size: tuple[int, int]) -> Figure:
    """Draws input, visible patches and MSM-MAE's reconstruction, a row a sample.

    Args:
        x: Input of the step, [B, C, F, T], normalised; three channels are shown as colours.
        result: The step's result: predictions of standardised pixels, and the mask.
        patch_size: (frequency, time) of a patch.
    """
    x = _whole_patches(x, patch_size)
    with _style():
        return _draw(_seen(x, result, patch_size) | {"reconstruction": reconstructed(x, result, patch_size)})


def error_map(x: Tensor, result: StepResult, patch_size: tuple[int, int]) -> Figure:
    """Draws input, visible patches and M2D's prediction error at every masked patch, a row a sample.

    Args:
        x: Input of the step, [B, C, F, T], normalised; three channels are shown as colours.
        result: The step's result: predictions, standardised targets, and the mask.
        patch_size: (frequency, time) of a patch.
    """
    x = _whole_patches(x, patch_size)
    errors = prediction_errors(result, (x.shape[2] // patch_size[0], x.shape[3] // patch_size[1]))
    with _style():
        return _draw(_seen(x, result, patch_size) | {"prediction error": errors})


def with_noise(clean: Tensor, noisy: Tensor) -> Figure:
    """Draws crops before and after noise was mixed in, [B, 1, F, T], normalised, a row a sample."""
    with _style():
        return _draw({"clean": _whole_patches(clean, (1, 1)), "with noise": _whole_patches(noisy, (1, 1))})


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, atomically; the same figure gives the same bytes."""
    with _style(), replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def visible_part(x: Tensor, masked: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Sets masked patches of the input to NaN.

    Args:
        x: [B, C, F, T], whole patches.
        masked: Indexes of the masked patches, [B, M].
        patch_size: (frequency, time) of a patch.
    """
    patches = to_patches(x, patch_size)
    return from_patches(patches.scatter(1, _over_pixels(masked, patches), torch.nan), x, patch_size)


def reconstructed(x: Tensor, result: StepResult, patch_size: tuple[int, int]) -> Tensor:
    """Replaces masked patches of the input by predictions, scaled back by each patch's own mean and std.

    Args:
        x: The first samples of the step's input, [B, C, F, T], whole patches.
        result: The step's result, predictions [≥ B, M, pf·pt·C].
        patch_size: (frequency, time) of a patch.

    Returns:
        [B, C, F, T].

    Source: MAE (arXiv 2111.06377), normalised pixel targets: (x − mean) / sqrt(var + 1e-6), unbiased variance.
    """
    patches = to_patches(x, patch_size)
    masked = _over_pixels(result.mask.masked[: len(x)], patches)
    own = patches.gather(1, masked)
    prediction = result.prediction[: len(x)].detach().cpu().float()
    pixels = prediction * (own.var(-1, keepdim=True) + 1e-6).sqrt() + own.mean(-1, keepdim=True)
    return from_patches(patches.scatter(1, masked, pixels), x, patch_size)


def prediction_errors(result: StepResult, grid_size: tuple[int, int]) -> Tensor:
    """2 − 2·cos between prediction and target at masked patches, NaN at visible ones.

    Args:
        result: The step's result.
        grid_size: Patches in (frequency, time): N_F, N_T.

    Returns:
        [B, N_F, N_T] of at most SAMPLES samples, in [0, 4].

    Source: M2D (2023), eq. 2.
    """
    assert result.target is not None
    prediction, target = (each[:SAMPLES].detach().cpu().float() for each in (result.prediction, result.target))
    errors = 2 - 2 * cosine_similarity(prediction, target, dim=-1)
    grid = torch.full((len(errors), grid_size[0] * grid_size[1]), torch.nan)
    return grid.scatter(1, result.mask.masked[:SAMPLES].cpu(), errors).view(-1, *grid_size)


def _over_pixels(index: Tensor, patches: Tensor) -> Tensor:
    """Indexes of patches [B, M] → the same for every pixel, [B, M, P]."""
    return index.cpu()[..., None].expand(-1, -1, patches.shape[-1])


def _whole_patches(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """The first samples as float32 on the CPU, without the frames past the last whole patch."""
    freq, time = (size - size % patch for size, patch in zip(x.shape[2:], patch_size, strict=True))
    return x[:SAMPLES, :, :freq, :time].detach().cpu().float()


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(_SETTINGS)  # type: ignore[arg-type]


def _seen(x: Tensor, result: StepResult, patch_size: tuple[int, int]) -> dict[str, Tensor]:
    return {"input": x, "visible patches": visible_part(x, result.mask.masked[:SAMPLES], patch_size)}


def _draw(columns: Mapping[str, Tensor]) -> Figure:
    """Draws a row a sample: wide panels for spectrograms, square ones in colour for images; grey for NaN.

    Args:
        columns: By title, [B, C, F, T], the first of which sets the range of values; the last may be the error of each
            patch, [B, N_F, N_T].
    """
    from matplotlib.figure import Figure

    x, last = next(iter(columns.values())), list(columns.values())[-1]
    image = x.shape[1] == 3
    width, height = (2.6, 2.6) if image else (4.4, 1.6)
    figure = Figure(figsize=(width * len(columns) + 0.6, height * len(x) + 0.5), layout="constrained")
    panels = figure.subplots(len(x), len(columns), sharex=True, sharey=True, squeeze=False)
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title)
    freq, time = x.shape[2:]
    options: dict[str, Any] = {"interpolation": "nearest", "extent": (-0.5, time - 0.5, freq - 0.5, -0.5)}
    if not image:
        options |= {"origin": "lower", "aspect": "auto", "extent": (-0.5, time - 0.5, -0.5, freq - 0.5)}
    for sample, row in enumerate(panels):
        low, high = x[sample].min().item(), max(x[sample].max().item(), x[sample].min().item() + 1e-6)
        for panel, values in zip(row, (column[sample] for column in columns.values()), strict=True):
            panel.set_facecolor(_GREY)
            if values.ndim == 2:
                worst = max(last.nan_to_num(0).max().item(), 1e-6)
                drawn = panel.imshow(values.numpy(), vmin=0, vmax=worst, cmap="magma", **options)
                panel.set_title(f"prediction error, mean {values.nanmean():.3f}")
            elif image:
                colours = ((values - low) / (high - low)).clamp(0, 1).nan_to_num(float(_GREY))
                panel.imshow(colours.permute(1, 2, 0).numpy(), **options)
            else:
                panel.imshow(values[0].numpy(), vmin=low, vmax=high, cmap="viridis", **options)
    if last.ndim == 3:
        figure.colorbar(drawn, ax=list(panels[:, -1]), label="2 − 2·cos")
    if image:
        panels[0, 0].set(xticks=[], yticks=[])
    else:
        for panel in panels[-1]:
            panel.set_xlabel("frame")
        for panel in panels[:, 0]:
            panel.set_ylabel("mel bin")
    return figure
