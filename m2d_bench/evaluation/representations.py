"""What a probe is given of a clip: its embedding, a pooled layer, all layers, or frames; and what of it is cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.protocol import Encoder
from m2d_bench.encoders.waveform import noise
from m2d_bench.errors import UsageError
from m2d_bench.evaluation.settings import LinearSettings, Pooling

SECONDS_AT_ONCE = 640
"""Seconds of padded audio in a batch: bounds memory when clips are long; a quarter of it where layers are kept."""

_MEAN, _STD, _MAX = range(3)
"""What is kept of each layer."""


@dataclass(frozen=True, kw_only=True)
class Representation:
    """What a probe is given of a clip; by default the encoder's scene embedding.

    Args:
        layer: Number of a layer, from 1, or all of them weighted; None for the encoder's own frames.
        pooling: How frames become one vector; "attention" leaves that to the probe.
    """

    layer: int | Literal["weighted"] | None = None
    pooling: Pooling | Literal["attention"] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's record says of it: nothing of the default."""
        return {name: value for name, value in vars(self).items() if value not in (None, "attention")}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the cache keeps of a clip, and what probes are given of that.

    Args:
        name: Part of the cache's key; empty for scene embeddings.
        shape: Of what is kept of a clip.
        embed: Waveforms of one length [B, S] and names of the clips → [B, *shape] float32 on the CPU.
        given: What is kept [n, *shape] → [K, n, …], of K representations.
        seconds_at_once: Seconds of audio a batch may hold.
    """

    name: str
    shape: tuple[int, ...]
    embed: Callable[[Tensor, Sequence[str]], Tensor]
    given: Callable[[np.ndarray], np.ndarray]
    seconds_at_once: int = SECONDS_AT_ONCE // 4


def asked(settings: LinearSettings, encoder: Encoder) -> list[Representation]:
    """The representations that the settings ask for, pooling by pooling.

    Raises:
        UsageError: The encoder lacks layers or frames, or has no layer of this number.
    """
    poolings: Sequence[Any] = settings.pooling or ("mean",)
    if settings.probe == "attentive":
        poolings = ("attention",)
    elif not settings.layer and not settings.pooling:
        return [Representation()]
    layers: Sequence[Any] = [settings.layer]
    second = noise(1, encoder.sample_rate)
    if settings.layer is None:
        encoder.timestamp_embeddings(second)  # an error where there are none
    else:
        count = len(_layers(encoder, second, ["a second of noise"]))
        if settings.layer == "all":
            layers = range(1, count + 1)
        elif isinstance(settings.layer, int) and settings.layer > count:
            raise UsageError(f"layer is {settings.layer}; {encoder.name} has 1 to {count}. Name one of them, or all.")
    wanted = [Representation(layer=layer, pooling=pooling) for pooling in dict.fromkeys(poolings) for layer in layers]
    if settings.layer in ("all", "weighted") and any(_needs_frames(each, encoder) for each in wanted):
        raise UsageError(
            f"flat takes the frames of one layer of {encoder.name}, got {settings.layer}. Name its number."
        )
    return wanted


def scenes(encoder: Encoder) -> Kept:
    """Scene embeddings."""
    return Kept(
        name="",
        shape=(encoder.scene_embedding_size,),
        embed=lambda waveforms, clips: encoder.scene_embeddings(waveforms, clips=clips),
        given=lambda kept: kept[None],
        seconds_at_once=SECONDS_AT_ONCE,
    )


def kept_for(encoder: Encoder, representations: Sequence[Representation], samples: int) -> Kept:
    """What is kept for representations of one pooling.

    Args:
        encoder: The encoder.
        representations: One or more; of frames, one.
        samples: Of a clip.

    Raises:
        UsageError: The encoder's layers are of different widths.
    """
    first = representations[0]
    if first.pooling is None:
        return scenes(encoder)
    if _needs_frames(first, encoder):
        return _frames(encoder, first, samples)

    def embed(waveforms: Tensor, clips: Sequence[str]) -> Tensor:
        return _statistics(_layers(encoder, waveforms, clips) if first.layer else _own(encoder, waveforms, clips))

    def given(kept: np.ndarray) -> np.ndarray:
        pooled = _pooled(kept, first.pooling, encoder)
        if first.layer == "weighted":
            return pooled[None]
        return np.stack([pooled[:, int(each.layer or 1) - 1] for each in representations])

    shape = tuple(embed(noise(1, samples), ["noise"]).shape[1:])
    name = "pooled layers" if first.layer else "pooled frames"
    return Kept(name=name, shape=shape, embed=embed, given=given)


def _frames(encoder: Encoder, representation: Representation, samples: int) -> Kept:
    """The frames of a layer, or the encoder's own."""
    layer = representation.layer

    def embed(waveforms: Tensor, clips: Sequence[str]) -> Tensor:
        layers = _layers(encoder, waveforms, clips) if layer else _own(encoder, waveforms, clips)
        return layers[int(layer or 1) - 1].to("cpu", torch.float32)

    def given(kept: np.ndarray) -> np.ndarray:
        return kept[None] if representation.pooling == "attention" else kept.reshape(1, len(kept), -1)

    shape = tuple(embed(noise(1, samples), ["noise"]).shape[1:])
    return Kept(name=f"frames of {layer or 'the encoder'}", shape=shape, embed=embed, given=given)


def _layers(encoder: Encoder, waveforms: Tensor, clips: Sequence[str]) -> list[Tensor]:
    layers = encoder.hidden_states(waveforms, clips=clips)
    if len(widths := dict.fromkeys(layer.shape[-1] for layer in layers)) > 1:
        raise UsageError(
            f"The layers of {encoder.name} are {', '.join(map(str, widths))} wide; they can be probed where all are of "
            "one width. Leave out layer to probe what timestamp_embeddings gives."
        )
    return layers


def _own(encoder: Encoder, waveforms: Tensor, clips: Sequence[str]) -> list[Tensor]:
    """The encoder's own frames, as one layer."""
    return [encoder.timestamp_embeddings(waveforms, clips=clips)[0]]


def _statistics(layers: Sequence[Tensor]) -> Tensor:
    """Frames [B, T, D] of each layer → their mean, standard deviation and maximum, [B, L, 3, D] on the CPU."""

    def of(frames: Tensor) -> Tensor:
        frames = frames.float()
        return torch.stack([frames.sum(1) / frames.shape[1], frames.std(1, correction=0), frames.amax(1)], 1)

    return torch.stack([of(frames) for frames in layers], 1).cpu()


def _pooled(kept: np.ndarray, pooling: str | None, encoder: Encoder) -> np.ndarray:
    """Statistics [n, L, 3, D] → [n, L, D] of a pooling; 2·D of mean+std, D / patches of flat."""
    if pooling == "mean+std":
        return kept[:, :, [_MEAN, _STD]].reshape(*kept.shape[:2], -1)
    if pooling == "flat":
        return np.asarray(kept[:, :, _MEAN].reshape(*kept.shape[:2], _stacked(encoder), -1).mean(2))
    return kept[:, :, _MAX if pooling == "max" else _MEAN]


def _needs_frames(representation: Representation, encoder: Encoder) -> bool:
    """Whether statistics over time are not enough: for attention, and for frames in a row."""
    return representation.pooling == "attention" or (representation.pooling == "flat" and not _stacked(encoder))


def _stacked(encoder: Encoder) -> int:
    """Patches that a frame of the M2D family stacks; 0 of other encoders."""
    own = encoder.encoder
    return own.timestamp_embedding_size // own.config.vit.width if isinstance(own, M2DEncoder) else 0
