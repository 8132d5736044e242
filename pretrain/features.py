"""Signs of collapse in features: the rank they use, and how much of their variance few directions hold."""

from __future__ import annotations

import torch
from torch import Tensor

from m2d_bench.errors import TrainingError, UsageError


def diagnose(features: Tensor) -> dict[str, float]:
    """All indicators of one batch of features, ready for the log.

    Args:
        features: [N, D] of any float type on any device, a row a clip; N ≥ 2. The rank is at most N − 1: numbers are
            comparable between equal N.

    Returns:
        `effective_rank`, `explained_variance_area`, and `feature_std`: the standard deviation of a dimension over the
        clips (unbiased), averaged over dimensions; 0 when all clips have the same features.

    Raises:
        UsageError: Another shape, or a single row.
        TrainingError: Values that are not finite.
    """
    values = _checked(features)
    singular_values = _singular_values(values)
    return {
        "effective_rank": _effective_rank(singular_values),
        "explained_variance_area": _explained_variance_area(singular_values, values.shape[1]),
        "feature_std": values.std(0).mean().item(),
    }


def effective_rank(features: Tensor) -> float:
    """How many directions the features use: exp of the entropy of their normalised singular values.

    Args:
        features: [N, D], see `diagnose`. Centred here, unlike in RankMe, where a large common mean hides the rest.

    Returns:
        k when k directions have the same spread and the others none; 0 for constant features; at most min(N − 1, D).

    Source: Roy & Vetterli (2007), effective rank; RankMe (arXiv 2210.02885), its use on features.
    """
    return _effective_rank(_singular_values(_checked(features)))


def explained_variance_area(features: Tensor) -> float:
    """Area under the curve of the explained variance ratio, cumulated over the principal components.

    Args:
        features: [N, D], see `diagnose`.

    Returns:
        Mean over j = 1 … D of the share of the variance that the first j components hold: (2D − k + 1) / 2D when k
        directions share it equally, so from (D + 1) / 2D for isotropic features to 1 when one direction has all of it;
        1 for constant features, too. With N ≤ D, the components that cannot be there count as explained.

    Source: after Li, Efros & Pathak (arXiv 2209.15007), whose curve cumulates singular values of features of unit
    length; here it is variances, squared singular values, and the features as they are.
    """
    values = _checked(features)
    return _explained_variance_area(_singular_values(values), values.shape[1])


def _checked(features: Tensor) -> Tensor:
    """Features as float64 on the CPU: the same numbers on every device, and MPS has no float64."""
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise UsageError(f"Features are [N, D] with two rows or more, got {list(features.shape)}.")
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise TrainingError(
            f"The features hold NaN or infinite values in {bad} of {len(features)} rows: the encoder has diverged, or "
            "its input is not finite."
        )
    return features.detach().to("cpu", torch.float64)


def _singular_values(values: Tensor) -> Tensor:
    """Of the centred features up to a factor, [min(N, D)], descending; what is left of rounding errors is 0."""
    values = values / values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)  # squares stay in the range
    singular_values: Tensor = torch.linalg.svdvals(values - values.mean(0))
    rounding = max(values.shape) * torch.finfo(torch.float64).eps * torch.linalg.norm(values)
    return singular_values.where(singular_values > rounding, 0.0)


def _effective_rank(singular_values: Tensor) -> float:
    total = singular_values.sum()
    return torch.special.entr(singular_values / total).sum().exp().item() if total > 0 else 0.0


def _explained_variance_area(singular_values: Tensor, width: int) -> float:
    if not singular_values.any():
        return 1.0
    variances = (singular_values / singular_values.max()).square()
    explained = variances.cumsum(0) / variances.sum()
    return ((explained.sum() + width - len(explained)) / width).item()
