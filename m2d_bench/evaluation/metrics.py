"""How a split is scored, one test split or many validation splits at once.

- accuracy: share of clips whose highest score is their class; of clips with several labels, their first one (of none,
  the first class), as in HEAR.
- chroma_accuracy: the same where classes twelve apart, octaves of a pitch, count as one.
- sensitivity: share of the clips of other classes than the first, the normal one, that are classified as their own;
  specificity: that of the clips of the first; icbhi_score: mean of the two.
- mAP: average precision, mean over classes.
- aucroc: area under the receiver operating characteristic, mean over classes.
- d_prime: √2 · Φ⁻¹(that area) of each class, mean over classes. A class ranked without a fault counts as if half a pair
  of clips were ranked wrongly, lest one such class make the mean infinite.

Classes for which a split holds no positive clip (or, for the last two, no negative one) are left out of the mean. All
but d_prime count from 0 to 1, and for all higher is better.

Source: HEAR 2021 (arXiv 2203.03022), table of tasks; d': Hershey et al. (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from m2d_bench.errors import DataError, UsageError
from m2d_bench.tasks.task import Metric

OF_CLASSES: tuple[Metric, ...] = ("mAP", "aucroc", "d_prime")
"""Metrics that are means over classes."""


def score(metric: Metric, logits: Tensor, labels: Tensor) -> float:
    """Score one split.

    Args:
        metric: One of the above.
        logits: Any score that grows with the belief in a class, [N, C].
        labels: Class indices [N], or multi-hot [N, C].

    Returns:
        The score; NaN where no class can be scored.
    """
    present = torch.ones(1, len(logits), dtype=torch.bool, device=logits.device)
    return float(batched_scores(metric, logits[None], labels[None], present))


def batched_scores(metric: Metric, logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Score P splits of different sizes in one pass.

    Args:
        metric: One of the above.
        logits: Scores padded to the longest split, [P, N, C]. Faster where its memory is laid out [P, C, N].
        labels: Class indices [P, N], or multi-hot [P, N, C]; anything at padding.
        present: True at clips, False at padding, [P, N].

    Returns:
        A score a split, float64 [P].

    Raises:
        UsageError: The metric is unknown.
    """
    if metric not in get_args(Metric):
        raise UsageError(f"Unknown metric {metric!r}. Allowed: {', '.join(get_args(Metric))}.")
    logits, labels, present = (on_float64_device(values) for values in (logits, labels, present))
    truth, choice = labels if labels.ndim == 2 else labels.argmax(-1), logits.argmax(-1)
    if metric in ("accuracy", "chroma_accuracy"):
        classes = logits.shape[-1] if metric == "accuracy" else 12
        hits = (choice % classes == truth % classes) & present
        share: Tensor = hits.sum(-1).double() / present.sum(-1)
        return share
    if metric in ("sensitivity", "specificity", "icbhi_score"):
        specificity, sensitivity = (
            ((choice == truth) & clips).sum(-1).double() / clips.sum(-1)
            for clips in ((truth == 0) & present, (truth > 0) & present)
        )
        shares = {"sensitivity": sensitivity, "specificity": specificity}
        return shares.get(metric, (sensitivity + specificity) / 2)
    return _class_scores(metric, logits, labels, present).nanmean(-1)


def per_class(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """What each class scores in the metrics that are means over classes, where clips may have several labels.

    Args:
        logits: Any score that grows with the belief in a class, [N, C].
        labels: Class indices [N], of which nothing is told, or multi-hot [N, C].
        classes: Names of the classes, C.

    Returns:
        By class and metric, to five decimals; without what a class cannot be scored in.
    """
    if labels.ndim == 1:
        return {}
    split = [on_float64_device(values)[None] for values in (logits, labels, torch.ones_like(labels[:, 0]).bool())]
    scores = {metric: _class_scores(metric, *split)[0].tolist() for metric in OF_CLASSES}
    return {
        name: {metric: round(value, 5) for metric in scores if not math.isnan(value := scores[metric][place])}
        for place, name in enumerate(classes)
    }


def _class_scores(metric: Metric, logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """A score a split and class, float64 [P, C], NaN where a class cannot be scored; see `batched_scores`."""
    positive = (labels if labels.ndim == 3 else one_hot(labels, logits.shape[-1])).mT > 0
    if metric == "mAP":
        return _average_precision(logits.mT, positive, present[:, None])
    area, n_pairs = _area_under_roc(logits.mT, positive, present[:, None])
    if metric == "aucroc":
        return area
    half_a_pair = 0.5 / n_pairs
    d_prime: Tensor = 2**0.5 * torch.special.ndtri(area.clamp(half_a_pair, 1 - half_a_pair))
    return d_prime


def on_float64_device(values: Tensor) -> Tensor:
    """The values on a device that has float64, which MPS has not."""
    return values.cpu() if values.device.type == "mps" else values


def _area_under_roc(scores: Tensor, positive: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Share of (positive, negative) pairs in the right order over the last dimension, equal scores counting half.

    Args:
        scores: [..., N].
        positive: True where the clip bears the label, [..., N].
        present: False at padding, broadcastable to [..., N].

    Returns:
        The area, NaN without pairs, and the number of pairs, float64 [...] both.

    Source: Mann–Whitney U.
    """
    scores = scores.masked_fill(~present, -torch.inf).contiguous()
    ranked = scores.sort(dim=-1).values
    twice_rank = torch.searchsorted(ranked, scores) + torch.searchsorted(ranked, scores, right=True) + 1
    among_clips = twice_rank.double() / 2 - (~present).sum(-1, keepdim=True)  # padding ranks lowest
    positive = positive & present
    n_positive = positive.sum(-1).double()
    n_pairs = n_positive * (present.sum(-1) - n_positive)
    return ((among_clips * positive).sum(-1) - n_positive * (n_positive + 1) / 2) / n_pairs, n_pairs


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


def check_scorable(metric: Metric, labels: Tensor, n_classes: int, what: str) -> None:
    """Raises a DataError, before anything is trained, where a metric is undefined for want of labels.

    Args:
        metric: One of `metrics`.
        labels: Class indices [N], or multi-hot [N, C].
        n_classes: C.
        what: The clips, as the message begins.
    """
    blank = torch.zeros(len(labels), n_classes)
    if (labels.ndim == 2 and not labels.any()) or math.isnan(score(metric, blank, labels)):
        raise DataError(f"{what} holds too few labels: {metric} is undefined there.")
