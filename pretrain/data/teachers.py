"""Frozen teachers: where the features come from that an offline task predicts, and how they lie beside a crop."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from m2d_bench import audio
from m2d_bench.encoders import zoo
from m2d_bench.encoders.frontend import HOP_MS
from m2d_bench.encoders.protocol import digest_of, wrap
from m2d_bench.encoders.vit import ViT
from m2d_bench.errors import AudioError, DataError, UsageError
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.data.shards import TeacherFacts
from m2d_bench.pretrain.data.source import Crop, Crops, Derived, Source
from m2d_bench.settings import Compute, Storage

LEAST_SECONDS = 7.0
"""Shorter waveforms are zero-padded to it before a teacher encodes them.

Source: the reference tool's extraction of HuBERT's features.
"""

_SECONDS_AT_ONCE = 120.0


class FrozenSource(Derived):
    """Clips with the features that the starting weights give for their crops.

    Args:
        source: The clips.
        vit: The encoder as it starts; it is copied.
        bf16: Whether it computes in bfloat16.
    """

    def __init__(self, source: Source, vit: ViT, bf16: bool = False) -> None:
        super().__init__(source, teacher=digest_of("frozen", vit.state_dict()))
        self._bf16 = bf16
        self._vit = copy.deepcopy(vit).eval().requires_grad_(False)

    @torch.no_grad()
    def batch(self, crops: Crops, device: torch.device) -> Batch:
        """Crops with features of every patch column, [B, N_T, N_F·D]."""
        batch = super().batch(crops, device)
        vit = self._vit.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            patches = vit(vit.embed(batch.log_mel))[-1][:, vit.n_class_tokens :]
        features = patches.unflatten(1, vit.config.grid_size).transpose(1, 2).flatten(2)
        return batch._replace(teacher_features=features)


class TaughtSource(Derived):
    """Clips of sound files with a teacher's features, computed as the crops are drawn.

    Args:
        source: The clips.
        teacher: Encodes their waveforms.
        columns: Patch columns of a crop.
        patch_frames: Log-mel frames of a patch column.

    Raises:
        UsageError: The teacher's frames do not fit the patches.
    """

    def __init__(self, source: Source, teacher: SpeechTeacher, columns: int, patch_frames: int) -> None:
        super().__init__(source, teacher=teacher.facts.digest)
        self._teacher, self._columns = teacher, columns
        self._frames = frames_a_patch(teacher.facts.hop_ms, patch_frames)

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        """Reads a random crop, and the whole waveform of its clip."""
        return super().read(index, rng)._replace(waveform=self._teacher.read(self.root / self.path(index)))

    def crops(self, clips: np.ndarray, rngs: Iterable[np.random.Generator], first: int = 0) -> Crops:
        return Source.crops(self, clips, rngs, first)  # what cannot be read to its end is skipped here

    def batch(self, crops: Crops, device: torch.device) -> Batch:
        """Crops with features of every patch column, [B, N_T, D]."""
        assert isinstance(crops.teacher, tuple)
        features = self._teacher.features([torch.from_numpy(waveform) for waveform in crops.teacher])
        hop_ms, count = self._teacher.facts.hop_ms, self._columns * self._frames
        rows = [f[beside(i, hop_ms, count, len(f))] for f, i in zip(features, crops.starts.tolist(), strict=True)]
        columns = averaged(torch.stack(rows).to(device), self._frames)
        return super().batch(crops, device)._replace(teacher_features=columns)


class SpeechTeacher:
    """An encoder of which one layer's frames are features.

    Attributes:
        facts: What prepared folders note of it.

    Args:
        name: Of the model, for the zoo.
        layer: Which layer, from 1; the last if None.
        sample_rate: Hz of the model that is taught.
        compute: Device and precision.
        storage: Cache of released weights.

    Raises:
        UsageError: Another sample rate, or no such layer; and what `zoo.load` raises.
    """

    def __init__(
        self, name: str, layer: int | None, sample_rate: int, compute: Compute, storage: Storage = Storage()
    ) -> None:
        encoder = wrap(zoo.load(name, compute=compute, storage=storage))
        if encoder.sample_rate != sample_rate:
            raise UsageError(
                f"The teacher {name} works at {encoder.sample_rate} Hz, the model that learns at {sample_rate} Hz. "
                "Choose a teacher of the same rate, or another rate of the model."
            )
        self._encoder, self._layer, self._sample_rate = encoder, layer, sample_rate
        self.facts = TeacherFacts(
            name=name,
            layer=layer,
            digest=f"{encoder.digest}:{layer or 'last'}",
            size=self._encode(torch.zeros(1, sample_rate)).shape[-1],
            hop_ms=encoder.hop_ms,
        )

    def read(self, path: Path) -> np.ndarray:
        """The waveform of a file, [S]."""
        try:
            return audio.read(path, self._sample_rate)
        except AudioError as error:
            raise DataError(str(error)) from error

    def features(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Features of whole clips [S], zero-padded to `LEAST_SECONDS`, [frames, D] each.

        Clips of one length are encoded together: padding to a longer mate would show.
        """
        least = int(LEAST_SECONDS * self._sample_rate)
        waveforms = [pad(waveform, (0, max(0, least - len(waveform)))) for waveform in waveforms]
        rows: dict[int, Tensor] = {}
        numbers = range(len(waveforms))
        for length, group in groupby(sorted(numbers, key=lambda n: len(waveforms[n])), lambda n: len(waveforms[n])):
            at_once = max(1, int(_SECONDS_AT_ONCE * self._sample_rate / length))
            while some := list(islice(group, at_once)):
                encoded = self._encode(torch.stack([waveforms[n] for n in some]))
                rows.update(zip(some, encoded, strict=True))
        return [rows[n] for n in numbers]

    def _encode(self, batch: Tensor) -> Tensor:
        """The layer's frames of waveforms of one length, [B, S] → [B, frames, D]."""
        if self._layer is None:
            return self._encoder.timestamp_embeddings(batch)[0]
        layers = self._encoder.hidden_states(batch)
        if not 1 <= self._layer <= len(layers):
            raise UsageError(f"{self._encoder.name} has no layer {self._layer}; its layers are 1 to {len(layers)}.")
        return layers[self._layer - 1]


def frames_a_patch(hop_ms: float, patch_frames: int) -> int:
    """Frames of a teacher beside one patch column.

    Args:
        hop_ms: Milliseconds between the teacher's frames.
        patch_frames: Log-mel frames of a patch column.

    Raises:
        UsageError: No whole number of them.
    """
    frames = patch_frames * HOP_MS / hop_ms
    if frames < 1 or frames != int(frames):
        raise UsageError(
            f"The teacher gives a frame every {hop_ms:g} ms, a patch column is {patch_frames * HOP_MS:g} ms long: a "
            f"column takes a whole number of frames. Choose patches of a multiple of {hop_ms / HOP_MS:g} log-mel "
            "frames with --set patch_size=…, or another teacher."
        )
    return int(frames)


def beside(start: int, hop_ms: float, count: int, n_frames: int) -> np.ndarray:
    """Numbers of a teacher's frames beside a crop, [count]; behind the end of the clip the last is repeated.

    Args:
        start: Log-mel frame at which the crop starts.
        hop_ms: Milliseconds between the teacher's frames.
        count: How many.
        n_frames: Frames of the clip.
    """
    return (int(start * HOP_MS / hop_ms) + np.arange(count)).clip(max=n_frames - 1)


def averaged(features: Tensor, frames: int) -> Tensor:
    """Means over the frames of each patch column, [B, T, D] → [B, T // frames, D] float32."""
    means: Tensor = features.float().unflatten(1, (-1, frames)).mean(2)
    return means
