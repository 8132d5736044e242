"""What an encoder is: the contract, and the one boundary where anybody's encoder and its embeddings enter."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cached_property
from itertools import chain
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from m2d_bench.encoders.waveform import Lengths, Waveform, as_native, check_waveform, noise
from m2d_bench.errors import DataError, UsageError

logger = logging.getLogger(__name__)

TOLERANCE = {"fp32": 1e-5, "bf16": 2**-6}
"""How far an embedding may move with its batch mates, relative to its largest value, by precision.

In float32 it is rounding. bfloat16 has 8 significant bits, and kernels that sum in another order for another batch size
round differently in each layer: four units in the last place (4 × 2⁻⁸).
"""

_SECONDS_OF_NOISE = 10
"""What the hop is measured on where an encoder does not declare it."""


class SceneEncoder(Protocol):
    """What is demanded of anybody's encoder; `wrap` derives the rest.

    `scene_embeddings` takes mono float32 waveforms [B, S] in [-1, 1] at `sample_rate` Hz and returns [B, D] floats, a
    tensor or an array. If it also takes `lengths` (real samples of each row), it is given zero-padded batches.
    """

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz."""
        ...

    @property
    def scene_embeddings(self) -> Callable[..., Any]:
        """[B, S] → [B, D]."""
        ...


@runtime_checkable
class AudioEncoder(Protocol):
    """The whole contract, which the encoders of the M2D family and every wrapped encoder fulfil.

    An embedding depends on its own clip alone, not on batch mates or padding: exactly but for rounding in fp32, within
    `TOLERANCE` in bf16. Waveforms are mono float32 in [-1, 1] at `sample_rate` Hz; `lengths` are the real samples of
    each row of a padded batch.
    """

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz."""
        ...

    @property
    def hop_ms(self) -> float:
        """Milliseconds between timestamps."""
        ...

    @property
    def scene_embedding_size(self) -> int:
        """D of scene embeddings."""
        ...

    @property
    def timestamp_embedding_size(self) -> int:
        """D of timestamp embeddings."""
        ...

    @property
    def digest(self) -> str:
        """Identity of weights and settings, used by every cache and record."""
        ...

    def hidden_states(self, waveform: Waveform, lengths: Lengths | None = None) -> list[Tensor]:
        """[B, S] → the output of every layer, [B, T, D] each."""
        ...

    def timestamp_embeddings(self, waveform: Waveform, lengths: Lengths | None = None) -> tuple[Tensor, Tensor]:
        """[B, S] → embeddings [B, T, D] and their timestamps [B, T] in ms."""
        ...

    def scene_embeddings(self, waveform: Waveform, lengths: Lengths | None = None) -> Tensor:
        """[B, S] → [B, D]."""
        ...


def wrap(encoder: SceneEncoder) -> Encoder:
    """The encoder under the whole contract, its answers checked; a wrapped one as it is.

    Raises:
        UsageError: Says what a class lacks to be an encoder.
    """
    return encoder if isinstance(encoder, Encoder) else Encoder(encoder)


class Encoder(nn.Module):
    """Anybody's encoder under the contract of `AudioEncoder`, with every answer checked.

    It stands for the encoder as it is now: the digest is computed once, so wrap anew after changing weights.

    Args:
        encoder: Has `sample_rate` and `scene_embeddings`; any other part of the contract is used where it is there.

    Raises:
        UsageError: Says what a class lacks to be an encoder.
    """

    def __init__(self, encoder: SceneEncoder) -> None:
        super().__init__()
        kind = type(encoder).__name__
        rate: Any = getattr(encoder, "sample_rate", None)
        if not _is_positive(rate, Integral):
            raise UsageError(
                f"{kind} is no encoder: sample_rate is {rate!r}. Add an attribute sample_rate, the Hz of the "
                "waveforms it takes, such as sample_rate = 16000."
            )
        if not callable(getattr(encoder, "scene_embeddings", None)):
            raise UsageError(
                f"{kind} is no encoder: it has no method scene_embeddings. Add scene_embeddings(self, waveform), which "
                f"takes a float32 tensor [B, samples] in [-1, 1] at {rate} Hz and returns embeddings [B, D]."
            )
        if isinstance(encoder, nn.Module) and encoder.training and next(encoder.parameters(), None) is not None:
            logger.warning("%s is in training mode; call .eval() unless it is meant to be.", kind)
        self.encoder = encoder
        self.sample_rate = int(rate)
        self.config = getattr(encoder, "config", None)
        name = getattr(self.config, "name", None)
        self.name = name if isinstance(name, str) and name else kind
        self.precision: str = getattr(encoder, "precision", "fp32")

    @cached_property
    def digest(self) -> str:
        """Its own digest; else SHA-256 over weights, class, configuration and rate, 16 hexadecimal digits.

        Raises:
            UsageError: No module and no digest, so that nothing tells whether its weights have changed.
        """
        if isinstance(own := getattr(self.encoder, "digest", None), str) and own:
            return own
        if not isinstance(self.encoder, nn.Module):
            raise UsageError(
                f"{self.name} is neither a torch.nn.Module, whose weights tell it from others, nor has it a digest. "
                "Make it a module, or add digest, a str that changes whenever its embeddings do."
            )
        kind = type(self.encoder)
        settings = [f"{kind.__module__}.{kind.__qualname__}", self.sample_rate, _settings(self.config)]
        return digest_of(settings, self.encoder.state_dict())

    @cached_property
    def scene_embedding_size(self) -> int:
        """D as the encoder declares it, else that of its embedding of a second of noise."""
        if getattr(self.encoder, "scene_embedding_size", None) is not None:
            return int(self._own_number("scene_embedding_size", Integral))
        return self._scenes(noise(1, self.sample_rate), ("a second of noise",)).shape[1]

    @property
    def has_frames(self) -> bool:
        """Whether the encoder gives timestamp embeddings."""
        return hasattr(self.encoder, "timestamp_embeddings")

    @cached_property
    def _frames_of_noise(self) -> tuple[Tensor, Tensor]:
        return self.timestamp_embeddings(noise(1, _SECONDS_OF_NOISE * self.sample_rate))

    @property
    def hop_ms(self) -> float:
        """Milliseconds between timestamps, as declared, else those of noise; a UsageError if there are none."""
        if not hasattr(self.encoder, "hop_ms"):
            return float(self._frames_of_noise[1].cpu().double().diff().mean())
        return float(self._own_number("hop_ms", Real))

    @property
    def timestamp_embedding_size(self) -> int:
        """D of timestamp embeddings, as declared, else that for noise; a UsageError if there are none."""
        if not hasattr(self.encoder, "timestamp_embedding_size"):
            return self._frames_of_noise[0].shape[-1]
        return int(self._own_number("timestamp_embedding_size", Integral))

    def hidden_states(
        self, waveform: Waveform, lengths: Lengths | None = None, *, clips: Sequence[str] = ()
    ) -> list[Tensor]:
        """[B, S] → the output of every layer, [B, T, D] each; a UsageError where the encoder gives none."""
        layers, clips = self._answer("hidden_states", waveform, lengths, clips)
        if not isinstance(layers, list | tuple) or not layers:
            raise UsageError(f"hidden_states of {self.name} must return a list of layers; it returned {_said(layers)}.")
        return [self._checked("hidden_states", layer, (len(clips), "T", "D"), clips) for layer in layers]

    def timestamp_embeddings(
        self, waveform: Waveform, lengths: Lengths | None = None, *, clips: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor]:
        """[B, S] → embeddings [B, T, D], timestamps [B, T] in ms; a UsageError where the encoder gives none."""
        both, clips = self._answer("timestamp_embeddings", waveform, lengths, clips)
        if not isinstance(both, list | tuple) or len(both) != 2:
            raise UsageError(
                f"timestamp_embeddings of {self.name} must return embeddings and timestamps; it returned {_said(both)}."
            )
        embeddings = self._checked("timestamp_embeddings", both[0], (len(clips), "T", "D"), clips)
        return embeddings, self._checked("timestamp_embeddings' timestamps", both[1], embeddings.shape[:2], clips)

    def scene_embeddings(
        self, waveform: Waveform, lengths: Lengths | None = None, *, clips: Sequence[str] = ()
    ) -> Tensor:
        """One embedding a clip, without gradient.

        An encoder that takes no `lengths` is given the clips of a padded batch by length, without padding.

        Args:
            waveform: [S] or [B, S] floats in [-1, 1].
            lengths: Real samples of each row.
            clips: Names of the clips for messages; by default the rows' numbers.

        Returns:
            [B, D] float32 on the CPU.

        Raises:
            AudioError: Waveforms that cannot be used.
            UsageError: The encoder does not return [B, D] floats of one D.
            DataError: It returns NaN or infinity; names the clips.
        """
        batch, counts = check_waveform(waveform, lengths, torch.device("cpu"))
        clips = clips or [f"row {row}" for row in range(len(batch))]
        if bool((counts == batch.shape[1]).all()):
            return self._sized(self._scenes(batch, clips), clips)
        if self._takes_lengths:
            return self._sized(self._scenes(batch, clips, lengths=counts.tolist()), clips)
        output = batch.new_empty(len(batch), self.scene_embedding_size)
        for length in counts.unique().tolist():
            rows = [row for row, count in enumerate(counts.tolist()) if count == length]
            names = [clips[row] for row in rows]
            output[rows] = self._sized(self._scenes(batch[rows, :length], names), names)
        return output

    @cached_property
    def _takes_lengths(self) -> bool:
        """Whether the encoder takes `lengths`; says once what it means if not."""
        try:
            takes = "lengths" in inspect.signature(self.encoder.scene_embeddings).parameters
        except ValueError:  # compiled code has no signature
            takes = False
        if not takes:
            logger.warning("%s takes no lengths: only clips of one length are encoded together.", self.name)
        return takes

    def _answer(
        self, method: str, waveform: Waveform, lengths: Lengths | None, clips: Sequence[str]
    ) -> tuple[Any, Sequence[str]]:
        """What a method of the encoder returns for waveforms, and names of the rows."""
        batch, counts = check_waveform(waveform, lengths, torch.device("cpu"))
        given = {} if lengths is None else {"lengths": counts.tolist()}
        return self._call(method, batch, **given), clips or [f"row {row}" for row in range(len(batch))]

    def _call(self, method: str, batch: Tensor, **lengths: list[int]) -> Any:
        """What a method of the encoder returns for waveforms, on its own device if it is a module."""
        weights = next(chain(self.parameters(), self.buffers()), batch)
        with torch.inference_mode():
            return self._own(method)(batch.to(weights.device), **lengths)

    def _scenes(self, batch: Tensor, clips: Sequence[str], **lengths: list[int]) -> Tensor:
        """Scene embeddings, checked, as [B, D] float32 on the CPU."""
        output = self._call("scene_embeddings", batch, **lengths)
        return self._checked("scene_embeddings", output, (len(clips), "D"), clips).to("cpu", torch.float32)

    def _sized(self, scenes: Tensor, clips: Sequence[str]) -> Tensor:
        """Scene embeddings, if they are as long as those of other clips."""
        if scenes.shape[1] != self.scene_embedding_size:
            raise UsageError(
                f"{self.name} returned embeddings of {scenes.shape[1]} numbers for {clips[0]}, "
                f"{self.scene_embedding_size} before or as scene_embedding_size says; every clip's must be as long."
            )
        return scenes

    def _checked(self, method: str, output: Any, expected: Sequence[int | str], clips: Sequence[str]) -> Tensor:
        """What the encoder returned, as a tensor of the expected shape (a letter is any size), or an error."""
        try:
            embeddings: Any = torch.from_numpy(as_native(output)) if isinstance(output, np.ndarray) else output
        except TypeError:  # an array of objects
            embeddings = None
        if (
            not isinstance(embeddings, Tensor)
            or embeddings.layout != torch.strided
            or embeddings.is_meta
            or not embeddings.is_floating_point()
            or not embeddings.numel()
            or embeddings.ndim != len(expected)
            or any(isinstance(n, int) and n != size for n, size in zip(expected, embeddings.shape, strict=True))
        ):
            shape = ", ".join(map(str, expected))
            raise UsageError(
                f"{method} of {self.name} must return a tensor or an array of floats [{shape}], one row a clip; "
                f"it returned {_said(output)} for {clips[0]}{' …' if len(clips) > 1 else ''}."
            )
        embeddings = embeddings.detach()
        finite = embeddings.float().isfinite().flatten(1).all(1).tolist()
        if broken := [clip for clip, row in zip(clips, finite, strict=True) if not row]:
            advice = "" if self.precision == "fp32" else "; try --precision fp32"
            raise DataError(f"{self.name} returned NaN or infinity for {', '.join(broken[:10])}{advice}.")
        return embeddings  # type: ignore[no-any-return]

    def _own_number(self, name: str, kind: type) -> Any:
        """A number above 0 that the encoder declares."""
        if not _is_positive(value := self._own(name), kind):
            what = "a whole number" if kind is Integral else "a number"
            raise UsageError(f"{name} of {self.name} is {value!r}; it must be {what} above 0.")
        return value

    def _own(self, name: str) -> Any:
        try:
            return getattr(self.encoder, name)
        except AttributeError:
            raise UsageError(f"{self.name} has no {name}, which this needs; see AudioEncoder.") from None


def digest_of(settings: Any, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over settings that JSON can hold and weights as float32, 16 hexadecimal digits."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, tensor in sorted(weights.items()):
        sha.update(key.encode())
        sha.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return sha.hexdigest()[:16]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast in force around an encoder's blocks: its precision, else what the caller set."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type))


def facts_of(encoder: SceneEncoder) -> dict[str, Any]:
    """What a run's record says of the encoder: name, digest, and its configuration where it is a dataclass."""
    wrapped = wrap(encoder)
    return {"name": wrapped.name, "digest": wrapped.digest, "config": _settings(wrapped.config)}


def _settings(config: Any) -> dict[str, Any]:
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}


def _is_positive(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf  # type: ignore[operator]


def _said(output: Any) -> str:
    """What an encoder returned, for messages."""
    shape = f" {output.dtype} {list(output.shape)}" if isinstance(output, Tensor | np.ndarray) else ""
    return f"{type(output).__name__}{shape}"
