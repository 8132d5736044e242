"""Indicators of collapse in features: the rank they use, and how much of their variance few directions hold."""

from __future__ import annotations

import torch
from torch import Tensor

from m2d_bench.errors import TrainingError, UsageError


def diagnose(features: Tensor) -> dict[str, float]:
    """Indicators of one batch of features, ready for the log.

    Args:
        features: [N, D] of any float type on any device, a row a clip; N ≥ 2. Numbers are comparable between equal N.

    Returns:
        `effective_rank`: exp of the entropy of the normalised singular values: k when k directions have the same spread
            and the others none; 0 for constant features; at most min(N − 1, D). Features are centred here, unlike in
            RankMe, where a large common mean hides the rest.
        `explained_variance_area`: mean over j = 1 … D of the share of the variance in the first j principal
            components: (2D − k + 1) / 2D when k directions share it equally, so from (D + 1) / 2D for isotropic
            features to 1 when one direction has all of it, and for constant features. With N ≤ D, components that
            cannot be there count as explained.
        `feature_std`: unbiased standard deviation of a dimension over the clips, averaged over dimensions.

    Raises:
        UsageError: Another shape, or a single row.
        TrainingError: Values that are not finite.

    Source: Roy & Vetterli (2007), effective rank; RankMe (arXiv 2210.02885), its use on features. The area is after Li,
    Efros & Pathak (arXiv 2209.15007), whose curve cumulates singular values of features of unit length; here it is
    variances, squared singular values, and the features as they are.
    """
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise UsageError(f"Features are [N, D] with two rows or more, got {list(features.shape)}.")
    if bad := int((~features.isfinite()).any(dim=1).sum()):
        raise TrainingError(
            f"The features hold NaN or infinite values in {bad} of {len(features)} rows: the encoder has diverged, or "
            "its input is not finite."
        )
    values = features.detach().to("cpu", torch.float64)  # the same numbers on every device; MPS has no float64
    singular_values, width = _singular_values(values), values.shape[1]
    rank, area = 0.0, 1.0
    if singular_values.any():
        rank = torch.special.entr(singular_values / singular_values.sum()).sum().exp().item()
        variances = (singular_values / singular_values.max()).square()
        explained = variances.cumsum(0) / variances.sum()
        area = ((explained.sum() + width - len(explained)) / width).item()
    return {"effective_rank": rank, "explained_variance_area": area, "feature_std": values.std(0).mean().item()}


def _singular_values(values: Tensor) -> Tensor:
    """Singular values of the centred features up to a factor, [min(N, D)], descending; rounding errors are set to 0."""
    values = values / values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)  # squares stay in the range
    singular_values: Tensor = torch.linalg.svdvals(values - values.mean(0))
    rounding = max(values.shape) * torch.finfo(torch.float64).eps * torch.linalg.norm(values)
    return singular_values.where(singular_values > rounding, 0.0)
