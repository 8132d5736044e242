"""`logmel`: a baseline without a network, mean and standard deviation of the log-mel spectrogram."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.frontend import HOP_MS, N_MELS, LogMel
from m2d_bench.encoders.protocol import Encoder

NAME = "logmel"


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Everything that determines an embedding.

    Args:
        name: Name of the model.
        sample_rate: Hz.
        version: Raised when a change of the code changes embeddings.
    """

    name: str = NAME
    sample_rate: int = 16000
    version: int = 1


class LogMelEncoder(nn.Module):
    """The front end alone: log-mel frames, and their mean and standard deviation over time."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LogMelConfig()
        self.sample_rate = self.config.sample_rate
        self.front_end = LogMel(self.sample_rate)
        self.hop_ms = HOP_MS
        self.timestamp_embedding_size = N_MELS
        self.scene_embedding_size = 2 * N_MELS

    @property
    def digest(self) -> str:
        """Identity of the configuration and the front end's constants; `version` stands for the code."""
        settings = [f"{__name__}.LogMelEncoder", self.sample_rate, asdict(self.config)]
        return digest_of(settings, self.state_dict())

    def timestamp_embeddings(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S] → log-mel frames [B, T, 80], and the centres of their windows [B, T] in ms."""
        frames = self.front_end(waveform)[:, 0].transpose(1, 2)
        n_frames = waveform.shape[1] // self.front_end.hop_length + 1  # centres within the audio
        times = torch.arange(n_frames, dtype=torch.float64) * HOP_MS
        return frames[:, :n_frames], times.expand(len(frames), -1)

    def scene_embeddings(self, waveform: Tensor) -> Tensor:
        """[B, S] → mean and standard deviation over time of the log-mel frames, [B, 160]."""
        frames, _ = self.timestamp_embeddings(waveform)
        variance, mean = torch.var_mean(frames, dim=1, correction=0)
        return torch.cat([mean, variance.sqrt()], dim=1)


def load(name: str = NAME) -> Encoder:
    """The encoder; clips of different lengths are encoded apart, so that padding changes nothing."""
    return Encoder(LogMelEncoder().eval())
