"""Accuracy and mean average precision, one test split or many validation splits at once."""

from __future__ import annotations

import torch
from torch import Tensor

from m2d_bench.errors import UsageError
from m2d_bench.tasks.task import Metric


def score(metric: Metric, logits: Tensor, labels: Tensor) -> float:
    """Score one split.

    Args:
        metric: `accuracy` or `mAP`.
        logits: Any score that grows with the belief in a class, [N, C].
        labels: Class indices [N] for accuracy, multi-hot [N, C] for mAP.

    Returns:
        A fraction from 0 to 1; NaN for mAP where no class has a positive.
    """
    present = torch.ones(1, len(logits), dtype=torch.bool, device=logits.device)
    return float(batched_scores(metric, logits[None], labels[None], present))


def batched_scores(metric: Metric, logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Score P splits of different sizes in one pass.

    Args:
        metric: `accuracy` or `mAP`.
        logits: Scores padded to the longest split, [P, N, C]. Faster where its memory is laid out [P, C, N].
        labels: Class indices [P, N] for accuracy, multi-hot [P, N, C] for mAP; anything at padding.
        present: True at clips, False at padding, [P, N].

    Returns:
        A fraction from 0 to 1 per split, float64 [P].

    Raises:
        UsageError: The metric is unknown.
    """
    if metric == "accuracy":
        hits = (logits.argmax(-1) == labels) & present
        return hits.sum(-1).double() / present.sum(-1)
    if metric == "mAP":
        precision = _average_precision(logits.mT, labels.mT > 0, present[:, None])
        return precision.nanmean(-1)
    raise UsageError(f"Unknown metric {metric!r}. Allowed: accuracy, mAP.")


def _average_precision(scores: Tensor, positive: Tensor, present: Tensor) -> Tensor:
    """Average precision over the last dimension; NaN where nothing is positive.

    Sum over thresholds of (recall step) × precision. Equal scores are one threshold, hence a clip's precision is that
    at the last clip of its score.

    Args:
        scores: [..., N].
        positive: True where the clip bears the label, [..., N].
        present: False at padding, broadcastable to [..., N].

    Source: sklearn.metrics.average_precision_score; its macro average counts a class without positives as 0, ours
    leaves it out.
    """
    ranked, order = scores.masked_fill(~present, -torch.inf).sort(dim=-1, descending=True)
    hit = (positive & present).gather(-1, order)
    rank = torch.arange(1, hit.shape[-1] + 1, device=hit.device)
    precision = hit.cumsum(-1).double() / rank
    last_of_tie = torch.ones_like(hit)
    last_of_tie[..., :-1] = ranked[..., 1:] != ranked[..., :-1]
    ends = (rank - 1).expand_as(order).masked_fill(~last_of_tie, hit.shape[-1])
    ends = ends.flip(-1).cummin(-1).values.flip(-1)
    return (precision.gather(-1, ends) * hit).sum(-1) / hit.sum(-1)
