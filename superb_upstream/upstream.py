"""The encoders as s3prl upstreams, one function a name s3prl's hub knows them by."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from m2d_bench.encoders import variants, zoo
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.waveform import check_waveform
from m2d_bench.errors import AudioError, UsageError
from m2d_bench.settings import Compute
from m2d_bench.superb_upstream import norm_stats

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000

Features = dict[str, Any]


class Upstream(nn.Module):
    """An encoder under s3prl's contract.

    Args:
        encoder: A 16 kHz encoder.

    Raises:
        UsageError: An encoder for another rate.
    """

    def __init__(self, encoder: M2DEncoder) -> None:
        super().__init__()
        if encoder.sample_rate != SAMPLE_RATE:
            raise UsageError(
                f"{encoder.config.name} takes {encoder.sample_rate} Hz; SUPERB's audio is at {SAMPLE_RATE} Hz. "
                "Choose a model for 16 kHz."
            )
        self.encoder = encoder

    def forward(self, wavs: Sequence[Tensor]) -> Features:
        """Features of every layer.

        Args:
            wavs: 1-D waveforms of any lengths at 16 kHz.

        Returns:
            `hidden_states`, one [B, frames, D] float32 a layer, zero beyond each clip's end; each also as
            `hidden_state_{i}`; and the last one as `last_hidden_state`. A clip's frames do not depend on its
            batch mates.
        """
        layers = self.encoder.hidden_states(*_padded(wavs))
        return {
            "hidden_states": layers,
            "last_hidden_state": layers[-1],
            **{f"hidden_state_{i}": layer for i, layer in enumerate(layers)},
        }

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples a frame, for any layer."""
        return self.encoder.front_end.hop_length * self.encoder.config.vit.patch_size[1]


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
    variant: str, ckpt: str | Path | None, model_config: str | Path | None
) -> tuple[str, tuple[float, float] | None]:
    """Name or path of the weights, and mean and standard deviation where given; arguments and errors as for `load`."""
    name, stats = norm_stats.parse(str(ckpt)) if ckpt else (variants.find(variant), None)
    if model_config:
        if stats:
            raise UsageError("Mean and standard deviation stand in -k and in -g; give them once.")
        stats = norm_stats.read(model_config)
    return name, stats


def load(variant: str, ckpt: str | Path | None, model_config: str | Path | None = None, **settings: Any) -> Upstream:
    """The upstream of a variant.

    Args:
        variant: m2d, m2d_s, m2d_as or msm_mae: whose weights to look for without `ckpt`.
        ckpt: s3prl's -k: any name or path of `m2d_bench.encoders.zoo`, alone or with statistics (`norm_stats.parse`).
        model_config: s3prl's -g: a YAML file with statistics (`norm_stats.read`).
        settings: Of the encoder, as for `zoo.load`.

    Raises:
        UsageError: Statistics twice, or an unknown name or setting.
        CheckpointError: No weights, or not what they claim to be.
    """
    name, stats = weights(variant, ckpt, model_config)
    if stats:
        settings["norm_stats"] = stats
    settings = {"compute": Compute(device="cpu", precision="fp32"), **settings}
    encoder = zoo.load_m2d(name, **settings)
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


def _entry(variant: str) -> Callable[..., Upstream]:
    """A function of s3prl's hub."""

    def entry(
        ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **settings: Any
    ) -> Upstream:
        return load(variant, ckpt, model_config, **settings)

    entry.__name__ = entry.__qualname__ = variant
    entry.__doc__ = f"{variant} as an s3prl upstream; see `superb_upstream.upstream.load`."
    return entry


def m2d_calcnorm(**ignored: Any) -> CalcNorm:
    """The upstream that measures mean and standard deviation."""
    return CalcNorm()


VARIANTS = {f"{name}{local}": name for local in ("", "_local") for name in ("m2d", "m2d_s", "m2d_as", "msm_mae")}
"""Names in s3prl's hub and the variant behind each; `_local` is s3prl's habit for entries that take -k."""

ENTRIES: dict[str, Callable[..., nn.Module]] = {
    **{name: _entry(variant) for name, variant in VARIANTS.items()},
    "m2d_calcnorm": m2d_calcnorm,
}
"""All names of ours in s3prl's hub."""


def register() -> None:
    """Puts the entries into `s3prl.hub`."""
    from m2d_bench import compat

    compat.restore()
    import s3prl.hub

    for name, entry in ENTRIES.items():
        setattr(s3prl.hub, name, entry)
