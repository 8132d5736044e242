"""What a check says of a rule: what is allowed, what was measured, the verdict, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2d_bench.encoders.precision import TOLERANCE
from m2d_bench.encoders.protocol import AnswerError, Encoder

POOL = "Pool over time: D must not depend on the length. No squeeze() either, which one frame alone would lose."
"""What to do where only clips of some lengths get an answer of another form."""

_FORMS: dict[str, tuple[str, tuple[int, ...]]] = {
    "scene_embeddings": ("embeddings [B, D]", (2,)),
    "timestamp_embeddings": ("embeddings [B, T, D] and the timestamps [B, T] of their frames in ms", (3, 2)),
    "hidden_states": ("a list of layers [B, T, D]", (3,)),
}
"""What each method returns, and the number of axes of each tensor in it."""


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
        yield Finding(rule, "no error", said(error), False, POOL if isinstance(error, AnswerError) else remedy)


def said(error: BaseException) -> str:
    """An error in one line, as a finding's measured."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def mended(method: str, answer: Any, rows: int) -> str:
    """What to do where a method's answer for so many clips has not the form that the contract says."""
    form, axes = _FORMS[method]
    parts = [answer] if method == "scene_embeddings" else answer
    if not isinstance(parts, list | tuple) or not parts or len(parts) % len(axes):
        return f"Return {form}."
    for part, n_axes in zip(parts, axes * len(parts), strict=False):
        if not isinstance(part, Tensor | np.ndarray):
            holder = type(part).__name__
            return f"Return {form}: the tensor in the {holder}, such as output[0] or output.last_hidden_state.mean(1)."
        if part.dtype == object or not torch.as_tensor(part).is_floating_point():
            return f"Return {form}, all as floats: x.float()."
        if part.ndim != n_axes:
            return f"Return {form}: keep the axis of clips (no squeeze, no mean over all axes); pool over time alone."
    return f"Return {form}, a row a clip in their order: {rows} for {rows} clips, whatever they hold."


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


def tolerance(encoder: Encoder, returned: torch.dtype = torch.float32) -> float:
    """Allowed difference of what is encoded in another batch: that of its precision, or of its coarsest type if larger.

    Args:
        encoder: Has a precision (of those not known the largest counts) and weights of any types.
        returned: Type of its embeddings.
    """
    types = {returned, *(weight.dtype for weight in encoder.parameters() if weight.is_floating_point())}
    coarsest = 2 * max(torch.finfo(each).eps for each in types)  # four units in the last place, as in TOLERANCE
    return max(coarsest, TOLERANCE.get(encoder.precision, max(TOLERANCE.values())))


def distance(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Largest difference relative to the largest value of the second one's row, and the smallest cosine of a row."""
    first, second = (embeddings.detach().flatten(1).cpu().double() for embeddings in (first, second))
    scale = second.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    cosines = torch.cosine_similarity(first, second).where((first != second).any(1), 1.0)  # of zeros, too
    return ((first - second).abs() / scale).max().item(), cosines.min().item()


def tensor(rule: str, tensor: Tensor, shape: Sequence[int], remedy: str = "", *, advice: bool = False) -> Finding:
    """Whether a tensor is finite, float32, of this shape and without gradient."""
    expected = f"float32 {list(shape)}"
    received = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
    if not tensor.isfinite().all():
        received += ", not finite"
    if tensor.requires_grad:
        received += ", with gradient"
    return Finding(rule, expected, received, received == expected, remedy, advice)
