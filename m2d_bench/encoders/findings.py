"""What a check says of a rule: what is allowed, what was measured, the verdict, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m2d_bench.encoders.protocol import TOLERANCE


@dataclass(frozen=True)
class Finding:
    """One rule and how an encoder keeps it.

    Args:
        rule: What is asked.
        allowed: What keeps it.
        measured: What the encoder did.
        kept: Whether it keeps the rule; None if the rule was not tried.
        remedy: What to do where it is not kept.
        advice: Whether no score is wrong where it is not kept.
    """

    rule: str
    allowed: str
    measured: str
    kept: bool | None
    remedy: str = ""
    advice: bool = False

    @property
    def verdict(self) -> str:
        """How a table shows it."""
        return "–" if self.kept is None else "ok" if self.kept else "advice" if self.advice else "BROKEN"


def tried(rule: str, findings: Iterator[Finding], remedy: str = "") -> Iterator[Finding]:
    """The findings; an error while they are made becomes one too."""
    try:
        yield from findings
    except (Exception, SystemExit) as error:  # of anybody's code
        yield Finding(rule, "no error", said(error), False, remedy)


def said(error: BaseException) -> str:
    """An error in one line, as a finding's measured."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def same(rule: str, first: Tensor, second: Tensor, allowed: float, remedy: str = "") -> Finding:
    """Whether embeddings [B, …] agree: the largest difference of a row, relative to its largest value.

    Args:
        rule: What is asked.
        first: Embeddings.
        second: The embeddings they should be.
        allowed: Largest relative difference.
        remedy: What to do where they differ by more.
    """
    expected = f"difference at most {allowed:.2g}"
    if first.shape != second.shape:
        return Finding(rule, expected, f"shapes {list(first.shape)} and {list(second.shape)}", False, remedy)
    difference, cosine = distance(first, second)
    return Finding(rule, expected, f"{difference:.2g}, cosine {cosine:.4f}", difference <= allowed, remedy)


def tolerance(precision: str) -> float:
    """Allowed difference of what is encoded in another batch, by precision; the largest for those not known."""
    return TOLERANCE.get(precision, max(TOLERANCE.values()))


def distance(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Largest difference relative to the largest value of the second one's row, and the smallest cosine of a row."""
    first, second = (embeddings.detach().flatten(1).cpu().double() for embeddings in (first, second))
    scale = second.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return ((first - second).abs() / scale).max().item(), torch.cosine_similarity(first, second).min().item()


def tensor(rule: str, tensor: Tensor, shape: Sequence[int], remedy: str = "", *, advice: bool = False) -> Finding:
    """Whether a tensor is finite, float32, of this shape and without gradient."""
    expected = f"float32 {list(shape)}"
    received = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
    if not tensor.isfinite().all():
        received += ", not finite"
    if tensor.requires_grad:
        received += ", with gradient"
    return Finding(rule, expected, received, received == expected, remedy, advice)
