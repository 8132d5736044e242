"""Any other model that gives frames: its frames are measured, and it gets one clip at a time."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from m2d_bench.encoders.foreign import explained
from m2d_bench.encoders.huggingface.base import ExtractorConfig, digest_of_model
from m2d_bench.encoders.waveform import noise
from m2d_bench.errors import UsageError

_LEAST_SECONDS = 0.1
"""Shorter clips are zero-padded to it."""

_STRETCH = 96000
"""Samples by which a clip is lengthened to count frames: a multiple of every hop in use, 2⁸ · 3 · 5³."""


class Measured(NamedTuple):
    """What noise tells of a model.

    Args:
        hop: Samples between frames.
        depth: Number of layers.
        size: Of an embedding.
    """

    hop: float
    depth: int
    size: int


class MeasuredEncoder(nn.Module):
    """A model of which no more is known than that it gives frames for what its feature extractor makes of a clip.

    Frames whose middle lies beyond the end of a clip, made of padding, are left out.

    Args:
        config: What was loaded.
        model: The model of transformers, or its encoder.
        extractor: Its feature extractor.
        measured: What `measure` says of it.
    """

    def __init__(self, config: ExtractorConfig, model: nn.Module, extractor: Any, measured: Measured) -> None:
        super().__init__()
        self.config, self.model, self._extractor, self._hop = config, model, extractor, measured.hop
        self.sample_rate = config.sample_rate
        self.hop_ms = 1000 * measured.hop / config.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = measured.size

    @property
    def digest(self) -> str:
        """Identity of the weights as they are now, the configuration and the code."""
        return digest_of_model(self.config, self.model)

    def hidden_states(self, waveform: Tensor) -> list[Tensor]:
        """[B, S] → every layer, [B, T, D] each."""
        real = max(1, int(waveform.shape[1] / self._hop + 0.5))  # middles within the clip
        with explained(self.config.name, None):
            clips = [layers_of(self.model, self._extractor, clip, self.sample_rate) for clip in waveform]
        return [torch.cat(layer)[:, :real] for layer in zip(*clips, strict=True)]

    def timestamp_embeddings(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S] → the chosen layer's frames [B, T, D], and their middles within the clip [B, T] in ms."""
        features = self.hidden_states(waveform)[self.config.layer - 1]
        times = (torch.arange(features.shape[1], dtype=torch.float64) + 0.5) * self.hop_ms
        return features, times.clamp(max=1000 * waveform.shape[1] / self.sample_rate).expand(len(features), -1)

    def scene_embeddings(self, waveform: Tensor) -> Tensor:
        """[B, S] → mean over time of the chosen layer, [B, D]."""
        return self.hidden_states(waveform)[self.config.layer - 1].mean(1)


def measure(name: str, model: nn.Module, extractor: Any) -> Measured:
    """What a model makes of a second of noise and of more.

    Args:
        name: Of the model, for messages.
        model: The model, frozen and in evaluation mode.
        extractor: Its feature extractor.

    Raises:
        UsageError: It raises an error, gives no frames, or as many for a longer clip; says what it gives.
    """
    rate = int(extractor.sampling_rate)
    with explained(name, None):
        short, long = (layers_of(model, extractor, noise(1, n)[0], rate) for n in (rate, rate + _STRETCH))
    (_, few, size), many = short[-1].shape, long[-1].shape[1]
    if many <= few:
        raise UsageError(
            f"{name}: gives {few} frames for a second of noise and {many} for {1 + _STRETCH / rate:g} s, so either its "
            "feature extractor pads or cuts clips to one length, or these are no frames in time. Put it into a class "
            "of your own, see docs/your-encoder.md."
        )
    return Measured(hop=_STRETCH / (many - few), depth=len(short), size=size)


def layers_of(model: nn.Module, extractor: Any, clip: Tensor, sample_rate: int) -> tuple[Tensor, ...]:
    """A clip [S] → the output of every layer, [1, T, D] each; of the last alone where the model gives no other.

    Raises:
        UsageError: The model gives no frames; says what it gives.
    """
    clip = nn.functional.pad(clip, (0, max(0, int(_LEAST_SECONDS * sample_rate) - len(clip))))
    inputs = extractor(clip.detach().cpu().numpy(), sampling_rate=sample_rate, return_tensors="pt").to(clip.device)
    accepted = inspect.signature(model.forward).parameters.values()
    asks = any(each.name == "output_hidden_states" or each.kind is each.VAR_KEYWORD for each in accepted)
    output = model(**inputs, **({"output_hidden_states": True} if asks else {}))
    states = getattr(output, "hidden_states", None)
    last = getattr(output, "last_hidden_state", states)  # Dasheng calls it so
    if not isinstance(last, Tensor) or last.ndim != 3 or len(last) != 1:
        held = getattr(output, "__dict__", {})
        given = {key: list(value.shape) for key, value in held.items() if isinstance(value, Tensor)}
        raise UsageError(
            f"{type(model).__name__} gives {type(output).__name__} {given} for a clip; needed is last_hidden_state "
            "[1, frames, D]."
        )
    blocks = states[1:-1] if isinstance(states, tuple) else ()
    return (*blocks, last) if all(block.shape == last.shape for block in blocks) else (last,)
