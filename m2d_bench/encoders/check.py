"""Whether an encoder keeps the contract: one finding a rule, with what was expected and what was received."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from m2d_bench.encoders.protocol import TOLERANCE, Encoder, SceneEncoder, wrap
from m2d_bench.encoders.waveform import noise
from m2d_bench.errors import M2DBenchError, UsageError

SCENE_SECONDS = 2.74


@dataclass(frozen=True)
class Finding:
    """One rule and how a model keeps it.

    Args:
        rule: What is asked.
        expected: What is allowed.
        received: What the model gave.
        kept: Whether it keeps the rule; None if the rule was not tried.
        advice: Whether breaking it costs points rather than admission.
    """

    rule: str
    expected: str
    received: str
    kept: bool | None
    advice: bool = False

    @property
    def mark(self) -> str:
        """How a table shows it."""
        return "–" if self.kept is None else "ok" if self.kept else "advice" if self.advice else "BROKEN"


def check_encoder(encoder: SceneEncoder) -> list[Finding]:
    """Tries the rules that every encoder must keep to be evaluated.

    Args:
        encoder: Anybody's, as `linear` takes it.
    """
    try:
        wrapped = wrap(encoder)
    except UsageError as error:
        return [Finding("an encoder", "sample_rate and scene_embeddings", str(error), False)]
    return [
        *tried("attributes", _attributes(wrapped)),
        *tried("scene embeddings", _scenes(wrapped)),
        *tried("padding", _padding(wrapped)),
    ]


def tried(rule: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings; an error while they are made becomes one too."""
    try:
        yield from findings
    except (M2DBenchError, RuntimeError) as error:
        yield Finding(rule, "no error", f"{type(error).__name__}: {error}", False)


def same_in_a_batch(rule: str, embed: Callable[[Tensor], Tensor], waveform: Tensor, precision: str) -> Finding:
    """Whether the first row of [B, S] gets the same embedding alone, within the tolerance of the precision."""
    return _same(rule, embed(waveform)[:1], embed(waveform[:1]), precision)


def tensor(rule: str, tensor: Tensor, shape: Sequence[int]) -> Finding:
    """Whether a tensor is finite, float32, of this shape and without gradient."""
    expected = f"float32 {list(shape)}"
    received = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
    if not tensor.isfinite().all():
        received += ", not finite"
    if tensor.requires_grad:
        received += ", with gradient"
    return Finding(rule, expected, received, received == expected)


def _attributes(encoder: Encoder) -> Iterator[Finding]:
    if isinstance(module := encoder.encoder, nn.Module):
        mode = "training" if module.training else "evaluation"
        yield Finding("mode of the module", "evaluation", mode, not module.training)
    yield Finding("digest", "text", repr(encoder.digest), bool(encoder.digest))
    size = encoder.scene_embedding_size
    yield Finding("scene_embedding_size", "an int above 0", repr(size), size > 0)


def _scenes(encoder: Encoder) -> Iterator[Finding]:
    waveform = noise(4, int(SCENE_SECONDS * encoder.sample_rate))
    rule = f"{SCENE_SECONDS:g} s: scene embeddings"
    yield tensor(rule, encoder.scene_embeddings(waveform), (4, encoder.scene_embedding_size))
    rule = "scene embeddings whatever the batch"
    yield same_in_a_batch(rule, encoder.scene_embeddings, waveform, encoder.precision)


def _padding(encoder: Encoder) -> Iterator[Finding]:
    """A short clip beside a long one, padded with noise that the encoder must not hear."""
    waveform = noise(2, int(SCENE_SECONDS * encoder.sample_rate))
    samples = waveform.shape[1] // 3
    padded = encoder.scene_embeddings(waveform, [samples, waveform.shape[1]])[:1]
    alone = encoder.scene_embeddings(waveform[:1, :samples])
    yield _same("scene embeddings whatever the padding", padded, alone, encoder.precision)


def _same(rule: str, first: Tensor, second: Tensor, precision: str) -> Finding:
    difference = ((first - second).abs().max() / second.abs().max()).item()
    allowed = TOLERANCE.get(precision, max(TOLERANCE.values()))
    return Finding(rule, f"the same to {allowed:.2g}", f"the same to {difference:.1g}", difference <= allowed)
