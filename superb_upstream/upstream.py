"""The encoders as s3prl upstreams, one function a name s3prl's hub knows them by."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from m2d_bench import download
from m2d_bench.encoders import checkpoint, tensor_file, variants, zoo
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.protocol import Encoder, wrap
from m2d_bench.encoders.waveform import check_waveform
from m2d_bench.errors import AudioError, UsageError
from m2d_bench.settings import Compute, Storage, file_name
from m2d_bench.superb_upstream import norm_stats

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000

Features = dict[str, Any]

FAMILIES = ("m2d", "m2d_s", "m2d_as", "msm_mae")
"""Each with entries of its own in s3prl's hub, which look for its weights where -k names none; all take any encoder."""

_TOLERANCE = 5
"""Frames by which s3prl lets a batch differ from what its longest clip and the rate say, itself excluded."""


class Upstream(nn.Module):
    """An encoder under s3prl's contract.

    Args:
        encoder: A 16 kHz encoder that gives hidden states or timestamp embeddings.

    Raises:
        UsageError: An encoder for another rate, or one without frames.
    """

    def __init__(self, encoder: M2DEncoder | Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.name = wrap(encoder).name
        if encoder.sample_rate != SAMPLE_RATE:
            raise UsageError(
                f"{self.name} takes {encoder.sample_rate} Hz; SUPERB's audio is at {SAMPLE_RATE} Hz. "
                "Choose a model for 16 kHz."
            )
        self.rate = round(encoder.hop_ms * SAMPLE_RATE / 1000)

    def forward(self, wavs: Sequence[Tensor]) -> Features:
        """Features of every layer.

        Args:
            wavs: 1-D waveforms of any lengths at 16 kHz.

        Returns:
            `hidden_states`, one [B, frames, D] float32 a layer; each also as `hidden_state_{i}`; and the last one as
            `last_hidden_state`. A clip's frames do not depend on its batch mates.

        Raises:
            UsageError: Another number of frames than the encoder's hop says.
        """
        batch, lengths = _padded(wavs)
        family = isinstance(self.encoder, M2DEncoder)
        layers = self.encoder.hidden_states(batch, lengths) if family else self._by_length(batch, lengths)
        return {
            "hidden_states": layers,
            "last_hidden_state": layers[-1],
            **{f"hidden_state_{i}": layer for i, layer in enumerate(layers)},
        }

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples a frame, for any layer."""
        return self.rate

    def _by_length(self, batch: Tensor, lengths: list[int]) -> list[Tensor]:
        """Layers of a padded batch, its clips encoded with those of their length, [B, frames, D] each."""
        clips: dict[int, tuple[Tensor, ...]] = {}
        for length in set(lengths):
            rows = [row for row, count in enumerate(lengths) if count == length]
            layers = self.encoder.hidden_states(batch[rows, :length])
            clips |= zip(rows, zip(*(self._fitted(layer, length) for layer in layers), strict=True), strict=True)
        by_layer = zip(*(clips[row] for row in range(len(batch))), strict=True)
        return [pad_sequence(list(layer), batch_first=True).to(batch.device, torch.float32) for layer in by_layer]

    def _fitted(self, layer: Tensor, samples: int) -> Tensor:
        """[B, frames, D] with as many frames as s3prl counts, or more; the last one stands for those that are missing.

        s3prl would take the padding of a batch for them, and stops where they are many.
        """
        frames, expected = layer.shape[1], round(samples / self.rate)
        if abs(frames - expected) >= _TOLERANCE:
            raise UsageError(
                f"{self.name} gives {frames} frames for {samples} samples; by its hop of {self.encoder.hop_ms:g} ms "
                f"they are {expected}, and s3prl takes a difference below {_TOLERANCE}. Correct its hop_ms, or cut the "
                "clips shorter."
            )
        return torch.cat([layer, layer[:, -1:].expand(-1, max(0, expected - frames), -1)], dim=1)


class CalcNorm(nn.Module):
    """An upstream that measures what passes through it: mean and standard deviation of log-mel spectrograms.

    Its features are those spectrograms. It logs the statistics whenever the number of clips has doubled;
    `m2d-bench superb calcnorm` is the shorter way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.front_end = LogMel(SAMPLE_RATE)
        self.statistics = Statistics()

    def forward(self, wavs: Sequence[Tensor]) -> Features:
        """Args and Returns: as for Upstream, with one layer [B, frames, 80]."""
        batch, lengths = check_waveform(*_padded(wavs), wavs[0].device)
        log_mels = [self.front_end(wav[None, :n])[0, 0].T for wav, n in zip(batch, lengths.tolist(), strict=True)]
        for log_mel in log_mels:
            self.statistics.add(log_mel)
            if self.statistics.clips & (self.statistics.clips - 1) == 0:
                logger.warning(str(self.statistics))  # as it stands now
        return {"hidden_states": [pad_sequence(log_mels, batch_first=True)]}

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples a frame."""
        return self.front_end.hop_length


class Statistics:
    """Mean and standard deviation of everything added, in float64; a clip counts by its length."""

    def __init__(self) -> None:
        self.clips, self.count, self.mean, self._squares = 0, 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Adds a clip's values (Chan et al., 1983)."""
        values = values.detach().cpu().double()  # MPS has no float64
        count, mean = values.numel(), values.mean().item()
        delta, total = mean - self.mean, self.count + count
        self._squares += (values - mean).square().sum().item() + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.clips, self.count = self.clips + 1, total

    @property
    def std(self) -> float:
        """Standard deviation over all values."""
        return math.sqrt(self._squares / max(1, self.count))

    def __str__(self) -> str:
        return f"mean {self.mean:.5f}, std {self.std:.5f} over {self.clips} clips"


def _padded(wavs: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    if not len(wavs) or any(not isinstance(wav, Tensor) or wav.ndim != 1 or not len(wav) for wav in wavs):
        received = [list(wav.shape) if isinstance(wav, Tensor) else type(wav).__name__ for wav in wavs]
        raise AudioError(f"wavs is a list of 1-D waveforms (tensors) that are not empty, got {received}.")
    return pad_sequence(list(wavs), batch_first=True), [len(wav) for wav in wavs]


def weights(
    variant: str, ckpt: str | Path | None, model_config: str | Path | None, storage: Storage
) -> tuple[str, tuple[float, float] | None]:
    """Name or path of the weights, and mean and standard deviation where given; arguments and errors as for `load`."""
    if ckpt:
        name, stats = norm_stats.parse(str(ckpt))
    else:
        name, stats = variants.find(variant, storage) if variant else zoo.DEFAULT, None
    if model_config:
        if stats:
            raise UsageError("Mean and standard deviation stand in -k and in -g; give them once.")
        stats = norm_stats.read(model_config)
    return name, stats


def load(
    variant: str,
    ckpt: str | Path | None,
    model_config: str | Path | None = None,
    refresh: bool = False,
    storage: Storage = Storage(),
    **settings: Any,
) -> Upstream:
    """The upstream of a variant.

    Args:
        variant: m2d, m2d_s, m2d_as or msm_mae: whose weights to look for without `ckpt`; empty for the default model.
        ckpt: s3prl's -k: any name or path of `m2d_bench.encoders.zoo` or an address of weights, alone or, of the M2D
            family, with statistics (`norm_stats.parse`).
        model_config: s3prl's -g: a YAML file with statistics (`norm_stats.read`).
        refresh: s3prl's -r: whether weights of an address are downloaded anew.
        storage: The cache of weights.
        settings: Of the encoder, as for `zoo.load`.

    Raises:
        UsageError: Statistics twice, or an unknown name or setting.
        CheckpointError: No weights, or not what they claim to be.
    """
    name, stats = weights(variant, ckpt, model_config, storage)
    if "://" in name:
        name = _downloaded(name, storage, refresh)
    if stats:
        settings["norm_stats"] = stats
    settings = {"compute": Compute(device="cpu", precision="fp32"), **settings}
    encoder = zoo.load(name, storage=storage, **settings)
    if not isinstance(encoder, M2DEncoder):
        return Upstream(wrap(encoder))
    if not stats:
        logger.warning(
            "%s: no mean and std of the task given; the checkpoint's own, %g and %g, are used. Published ones: "
            "-k %s,TASK (%s); of your data: m2d-bench superb calcnorm.",
            name,
            *encoder.config.norm_stats,
            name,
            ", ".join(norm_stats.TASKS),
        )
    encoder.requires_grad_(True)  # for -f; s3prl runs frozen upstreams without gradients
    encoder.vit.pos_embed.requires_grad_(False)
    return Upstream(encoder)


def _downloaded(url: str, storage: Storage, refresh: bool) -> str:
    """Name or path of the weights of an address: of released ones their name, of others a file in the cache.

    The file lies in a folder named after the address's, which says what the model is.
    """
    for release in zoo.RELEASED.values():
        if url == release.url:
            return release.name
    path = Path(urlsplit(url).path)
    if path.suffix.lower() not in tensor_file.SUFFIXES:
        raise UsageError(
            f"-k {url}: an address is one of released weights (.zip) or of a file {', '.join(tensor_file.SUFFIXES)}."
        )
    name = path.parent.name if checkpoint.parse_name(path.parent.name) else path.stem
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    file = storage.cache_root / "weights" / file_name(f"{name}-{digest}") / path.name
    if refresh:
        file.unlink(missing_ok=True)
    download.fetch(url, file, manual=f"download it as {file}", option="--cache")
    return str(file)
