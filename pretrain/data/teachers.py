"""Frozen teachers: where the features come from that an offline task predicts, and how they lie beside a crop."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from m2d_bench import audio
from m2d_bench.encoders import zoo
from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.frontend import HOP_MS
from m2d_bench.encoders.protocol import wrap
from m2d_bench.encoders.vit import ViT
from m2d_bench.errors import AudioError, DataError, UsageError, naming_option
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.data.shards import TeacherFacts
from m2d_bench.pretrain.data.source import Crop, Crops, Derived, Source
from m2d_bench.settings import Compute, Storage

LEAST_SECONDS = 7.0
"""Shorter waveforms are zero-padded to it before a teacher encodes them.

Source: the reference tool's extraction of HuBERT's features.
"""

_SECONDS_AT_ONCE = 120.0


@dataclass(frozen=True)
class Alignment:
    """Which of a teacher's frames lie beside the patch columns of a crop.

    Args:
        hop_ms: Milliseconds between the teacher's frames.
        columns: Patch columns of a crop.
        patch_frames: Log-mel frames of a patch column.

    Raises:
        UsageError: No whole number of the teacher's frames lies beside a column.
    """

    hop_ms: float
    columns: int
    patch_frames: int

    def __post_init__(self) -> None:
        if self.patch_frames * HOP_MS % self.hop_ms:
            raise UsageError(
                f"The teacher gives a frame every {self.hop_ms:g} ms, a patch column is "
                f"{self.patch_frames * HOP_MS:g} ms long: a column takes a whole number of frames. Choose patches of a "
                f"multiple of {self.hop_ms / HOP_MS:g} log-mel frames with --set patch_size=…, or another teacher."
            )

    @property
    def frames(self) -> int:
        """Frames of the teacher beside one column."""
        return int(self.patch_frames * HOP_MS // self.hop_ms)

    def beside(self, start: int, n_frames: int) -> np.ndarray:
        """Numbers of the teacher's frames beside a crop; behind the end of the clip the last is repeated.

        Args:
            start: Log-mel frame at which the crop starts.
            n_frames: Teacher's frames of the clip.

        Returns:
            [columns · frames].
        """
        numbers = int(start * HOP_MS / self.hop_ms) + np.arange(self.columns * self.frames)
        return numbers.clip(max=n_frames - 1)

    def averaged(self, features: Tensor) -> Tensor:
        """Means over the frames of each column, [B, columns · frames, D] → [B, columns, D] float32."""
        means: Tensor = features.float().unflatten(1, (self.columns, self.frames)).mean(2)
        return means


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
        self._teacher, self._alignment = teacher, Alignment(teacher.facts.hop_ms, columns, patch_frames)

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        """Reads a random crop, and the whole waveform of its clip."""
        return super().read(index, rng)._replace(waveform=self._teacher.read(self.root / self.path(index)))

    def crops(self, clips: np.ndarray, rngs: Iterable[np.random.Generator], first: int = 0) -> Crops:
        return Source.crops(self, clips, rngs, first)  # what cannot be read to its end is skipped here

    def batch(self, crops: Crops, device: torch.device) -> Batch:
        """Crops with features of every patch column, [B, N_T, D]."""
        assert isinstance(crops.teacher, tuple)
        features = self._teacher.features([torch.from_numpy(waveform) for waveform in crops.teacher])
        rows = [f[self._alignment.beside(i, len(f))] for f, i in zip(features, crops.starts.tolist(), strict=True)]
        columns = self._alignment.averaged(torch.stack(rows).to(device))
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
        self._name, self._layer, self._sample_rate = name, layer, sample_rate
        with naming_option("--teacher", name):
            self._encoder = wrap(zoo.load(name, compute=compute, storage=storage))
            if self._encoder.sample_rate != sample_rate:
                raise UsageError(
                    f"it works at {self._encoder.sample_rate} Hz, the model that learns at {sample_rate} Hz. Choose a "
                    "teacher of the same rate, or another rate of the model."
                )
            self.facts = TeacherFacts(
                name=name,
                layer=layer,
                digest=f"{self._encoder.digest}:{layer or 'last'}",
                size=self._encode(torch.zeros(1, sample_rate)).shape[-1],
                hop_ms=self._encoder.hop_ms,
                precision=self._encoder.precision,
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
        try:
            if self._layer is None:
                return self._encoder.timestamp_embeddings(batch)[0]
            layers = self._encoder.hidden_states(batch)
        except (MemoryError, RuntimeError) as error:
            if "allocate" not in str(error):
                raise
            raise DataError(
                f"{self._name}: {batch.numel() / self._sample_rate:.0f} s of sound at once take more memory than there "
                "is. Cut long files with m2d-bench prepare --max-seconds; --jobs 1 encodes one at a time."
            ) from error
        if not 1 <= self._layer <= len(layers):
            raise UsageError(
                f"it has no layer {self._layer}; its layers are 1 to {len(layers)}. Choose another --layer."
            )
        return layers[self._layer - 1]
