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

ALIKE = "The number of layers, and the frames and their width, must be the same for clips of one length."
"""What a clip whose layers or frames are not those of noise is told."""

_GUIDE = "docs/your-encoder.md"

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
        _own(encoder, second, ["a second of noise"])  # an error where there are none
    else:
        found = _layers(encoder, second, ["a second of noise"])
        count = len(found)
        if not isinstance(settings.layer, int):
            _check_widths(encoder, found)
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
        UsageError: Layers of different widths, of which more than one is asked for.
    """
    first = representations[0]
    if first.pooling is None:
        return scenes(encoder)
    if _needs_frames(first, encoder):
        return _frames(encoder, first, samples)

    numbers = [each.layer if isinstance(each.layer, int) else 1 for each in representations]
    of_noise = _taken(encoder, first, noise(1, samples), ["noise"], max(numbers))
    alone = isinstance(first.layer, int) and len(numbers) == 1 and len({layer.shape[-1] for layer in of_noise}) > 1

    def statistics(layers: list[Tensor]) -> Tensor:
        chosen = [layers[numbers[0] - 1]] if alone else layers
        _check_widths(encoder, chosen)
        return _statistics(chosen)

    def given(kept: np.ndarray) -> np.ndarray:
        pooled = _pooled(kept, first.pooling, encoder)
        if first.layer == "weighted":
            return pooled[None]
        return np.stack([pooled[:, 0 if alone else number - 1] for number in numbers])

    return Kept(
        name=f"pooled layer {first.layer}" if alone else "pooled layers" if first.layer else "pooled frames",
        shape=tuple(statistics(of_noise).shape[1:]),
        embed=lambda waveforms, clips: statistics(_taken(encoder, first, waveforms, clips, max(numbers))),
        given=given,
    )


def _frames(encoder: Encoder, representation: Representation, samples: int) -> Kept:
    """The frames of a layer, or the encoder's own."""
    layer = representation.layer
    number = int(layer or 1)

    def embed(waveforms: Tensor, clips: Sequence[str]) -> Tensor:
        return _taken(encoder, representation, waveforms, clips, number)[number - 1].to("cpu", torch.float32)

    def given(kept: np.ndarray) -> np.ndarray:
        return kept[None] if representation.pooling == "attention" else kept.reshape(1, len(kept), -1)

    shape = tuple(embed(noise(1, samples), ["noise"]).shape[1:])
    return Kept(name=f"frames of {layer or 'the encoder'}", shape=shape, embed=embed, given=given)


def _taken(
    encoder: Encoder, representation: Representation, waveforms: Tensor, clips: Sequence[str], least: int
) -> list[Tensor]:
    """All layers, [B, T, D] each, or the encoder's own frames as one; an error where a clip has fewer than `least`."""
    if not representation.layer:
        return _own(encoder, waveforms, clips)
    layers = _layers(encoder, waveforms, clips)
    if len(layers) < least:
        raise UsageError(f"hidden_states of {encoder.name} gave {len(layers)} layers for {clips[0]}. {ALIKE}")
    return layers


def _layers(encoder: Encoder, waveforms: Tensor, clips: Sequence[str]) -> list[Tensor]:
    if not hasattr(encoder.encoder, "hidden_states"):  # for which timestamp embeddings would stand
        raise UsageError(
            f"{encoder.name} has no hidden_states, which layer needs. Add hidden_states(self, waveform), which returns "
            f"a list of layers, each [B, T, D] ({_GUIDE}); or leave out layer."
        )
    return encoder.hidden_states(waveforms, clips=clips)


def _check_widths(encoder: Encoder, layers: Sequence[Tensor]) -> None:
    if len(widths := dict.fromkeys(layer.shape[-1] for layer in layers)) > 1:
        raise UsageError(
            f"The layers of {encoder.name} are {', '.join(map(str, widths))} wide; they can be probed together where "
            "all are of one width. Name one layer's number, or leave out layer to probe the encoder's own embedding."
        )


def _own(encoder: Encoder, waveforms: Tensor, clips: Sequence[str]) -> list[Tensor]:
    """The encoder's own frames, as one layer."""
    if not encoder.has_frames:
        raise UsageError(
            f"{encoder.name} has no timestamp_embeddings, which pooling and probe attentive need. Add "
            "timestamp_embeddings(self, waveform), which returns frames [B, T, D] and their times in ms [B, T] "
            f"({_GUIDE}); or leave out these options."
        )
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
