"""What an encoder is: the contract, and the one boundary where anybody's encoder and its embeddings enter."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from functools import cached_property
from itertools import chain
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from m2d_bench.encoders.digest import digest_of, parts_of
from m2d_bench.encoders.waveform import Lengths, Waveform, as_native, check_waveform, noise
from m2d_bench.errors import DataError, UsageError

logger = logging.getLogger(__name__)

_SECONDS_OF_NOISE = 10
"""What the hop is measured on where an encoder does not declare it."""


class AnswerError(UsageError):
    """What an encoder returned is not what its contract says."""


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
    `precision.TOLERANCE` in bf16. Waveforms are mono float32 in [-1, 1] at `sample_rate` Hz; `lengths` are the real
    samples of each row of a padded batch.
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
        lacks = []
        if rate is None:
            lacks.append(
                "it has no sample_rate. Add an attribute sample_rate, the Hz of the waveforms it takes, such as "
                "sample_rate = 16000."
            )
        elif not _is_positive(rate, Integral):
            lacks.append(f"sample_rate is {rate!r}; it must be a whole number above 0, such as sample_rate = 16000.")
        if not callable(getattr(encoder, "scene_embeddings", None)):
            lacks.append(
                "it has no method scene_embeddings. Add scene_embeddings(self, waveform), which takes a float32 tensor "
                f"[B, samples] in [-1, 1] at {rate or 'sample_rate'} Hz and returns embeddings [B, D]."
            )
        if lacks or rate is None:
            raise UsageError(f"{kind} is no encoder: {' And '.join(lacks)}")
        if isinstance(encoder, nn.Module) and encoder.training and next(encoder.parameters(), None) is not None:
            logger.warning("%s is in training mode; call .eval() unless it is meant to be.", kind)
        self.encoder = encoder
        says = isinstance(inspect.getattr_static(encoder, "digest", None), str | property | cached_property)
        self._parts = parts_of(encoder) if isinstance(encoder, nn.Module) and not says else []
        self.sample_rate = int(rate)
        self.config = getattr(encoder, "config", None)
        name = getattr(self.config, "name", None)
        self.name = name if isinstance(name, str) and name else kind
        self.precision: str = getattr(encoder, "precision", "fp32")
        self._told = False

    @cached_property
    def digest(self) -> str:
        """Its own digest; else SHA-256 over weights, `parts_of`, configuration and rate, 16 hexadecimal digits.

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
        return digest_of([*settings, self._parts], self.encoder.state_dict())

    @cached_property
    def scene_embedding_size(self) -> int:
        """D as the encoder declares it, else that of its embedding of a second of noise."""
        if getattr(self.encoder, "scene_embedding_size", None) is not None:
            return int(self._own_number("scene_embedding_size", Integral))
        answer = self._call("scene_embeddings", noise(1, self.sample_rate))
        return self._scenes(answer, ("a second of noise",)).shape[1]

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
        """Every layer, without gradient; of an encoder that gives none, its timestamp embeddings as the only one.

        Args: as for `scene_embeddings`, which says how a padded batch is encoded.

        Returns:
            [B, T, D] a layer; beyond a row's end zeros, or what an encoder that takes `lengths` gives there.

        Raises:
            UsageError: The encoder has neither, or returns no list of [B, T, D].
        """
        if not hasattr(self.encoder, "hidden_states"):
            return [self.timestamp_embeddings(waveform, lengths, clips=clips)[0]]
        return self._encoded("hidden_states", self._layers, waveform, lengths, clips)

    def timestamp_embeddings(
        self, waveform: Waveform, lengths: Lengths | None = None, *, clips: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor]:
        """Frames, without gradient. Args: as for `hidden_states`.

        Returns:
            Embeddings [B, T, D] and their timestamps [B, T] in ms, beyond a row's end as for `hidden_states`.

        Raises:
            UsageError: The encoder has none, or does not return these.
        """
        embeddings, timestamps = self._encoded("timestamp_embeddings", self._stamped, waveform, lengths, clips)
        return embeddings, timestamps

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
        (scenes,) = self._encoded("scene_embeddings", self._sized, waveform, lengths, clips)
        return scenes

    def _encoded(
        self,
        method: str,
        parts: Callable[[Any, Sequence[str]], list[Tensor]],
        waveform: Waveform,
        lengths: Lengths | None,
        clips: Sequence[str],
    ) -> list[Tensor]:
        """What a method returns for waveforms: [B, …] for each of the parts that an answer of it is checked to have."""
        batch, counts = check_waveform(waveform, lengths, torch.device("cpu"))
        clips = clips or [f"row {row}" for row in range(len(batch))]
        encoded: dict[int, tuple[Tensor, ...]] = {}
        for rows, answer in self._answers(method, batch, counts):
            encoded |= zip(rows, zip(*parts(answer, [clips[row] for row in rows]), strict=True), strict=True)
        by_part = zip(*(encoded[row] for row in range(len(batch))), strict=True)
        return [pad_sequence(list(part), batch_first=True) for part in by_part]

    def _answers(self, method: str, batch: Tensor, counts: Tensor) -> Iterator[tuple[list[int], Any]]:
        """Rows of a padded batch and what a method returns for them: at once where it takes lengths, else by length."""
        everything = list(range(len(batch)))
        if bool((counts == batch.shape[1]).all()):
            yield everything, self._call(method, batch)
        elif self._takes_lengths(method):
            yield everything, self._call(method, batch, lengths=counts.tolist())
        else:
            for length in counts.unique().tolist():
                rows = [row for row in everything if counts[row] == length]
                yield rows, self._call(method, batch[rows, :length])

    def _takes_lengths(self, method: str) -> bool:
        """Whether a method of the encoder takes `lengths`; says once what it means if not."""
        takes = takes_lengths(self._own(method))
        if not takes and not self._told:
            logger.warning("%s takes no lengths: only clips of one length are encoded together.", self.name)
            self._told = True
        return takes

    def _call(self, method: str, batch: Tensor, **lengths: list[int]) -> Any:
        """What a method of the encoder returns for waveforms, on its own device if it is a module."""
        if not lengths and takes_lengths(self._own(method), always=True):
            lengths = {"lengths": [batch.shape[1]] * len(batch)}
        weights = next(chain(self.parameters(), self.buffers()), batch)
        with torch.inference_mode():
            return self._own(method)(batch.to(weights.device), **lengths)

    def _scenes(self, answer: Any, clips: Sequence[str]) -> Tensor:
        """Scene embeddings, checked, as [B, D] float32 on the CPU."""
        return self._checked("scene_embeddings", answer, (len(clips), "D"), clips).to("cpu", torch.float32)

    def _layers(self, answer: Any, clips: Sequence[str]) -> list[Tensor]:
        """Layers, checked."""
        if not isinstance(answer, list | tuple) or not answer:
            raise AnswerError(
                f"hidden_states of {self.name} must return a list of layers; it returned {_said(answer)}."
            )
        shape = (len(clips), "T", "D")
        return [self._checked(f"hidden_states (layer {n})", layer, shape, clips) for n, layer in enumerate(answer, 1)]

    def _stamped(self, answer: Any, clips: Sequence[str]) -> list[Tensor]:
        """Timestamp embeddings and timestamps, checked."""
        if not isinstance(answer, list | tuple) or len(answer) != 2:
            raise AnswerError(
                f"timestamp_embeddings of {self.name} must return embeddings and timestamps; it returned "
                f"{_said(answer)}."
            )
        embeddings = self._checked("timestamp_embeddings", answer[0], (len(clips), "T", "D"), clips)
        return [embeddings, self._checked("timestamp_embeddings' timestamps", answer[1], embeddings.shape[:2], clips)]

    def _sized(self, answer: Any, clips: Sequence[str]) -> list[Tensor]:
        """Scene embeddings, checked, if they are as long as those of other clips."""
        scenes = self._scenes(answer, clips)
        if scenes.shape[1] != self.scene_embedding_size:
            raise AnswerError(
                f"{self.name} returned embeddings of {scenes.shape[1]} numbers for {clips[0]}, "
                f"{self.scene_embedding_size} before or as scene_embedding_size says; every clip's must be as long."
            )
        return [scenes]

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
            raise AnswerError(
                f"{method} of {self.name} must return a tensor or an array of floats [{shape}], one row a clip; "
                f"it returned {_said(output)} for {clips[0]}{' …' if len(clips) > 1 else ''}."
            )
        embeddings = embeddings.detach()
        finite = embeddings.float().isfinite().flatten(1).all(1).tolist()
        if broken := [clip for clip, row in zip(clips, finite, strict=True) if not row]:
            advice = "" if self.precision == "fp32" else "; try --precision fp32"
            raise DataError(f"{method} of {self.name} returned NaN or infinity for {', '.join(broken[:10])}{advice}.")
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


def takes_lengths(method: Callable[..., Any], *, always: bool = False) -> bool:
    """Whether a method of an encoder takes `lengths`, or cannot be called without."""
    try:
        parameter = inspect.signature(method).parameters.get("lengths")
    except ValueError:  # compiled code has no signature
        return False
    return parameter is not None and not (always and parameter.default is not parameter.empty)


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
