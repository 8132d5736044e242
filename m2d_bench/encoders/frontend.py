"""The only STFT settings of the package: waveform → log-mel spectrogram → normalised."""

from __future__ import annotations

import torch
from nnAudio.librosa_functions import get_mel
from torch import Tensor, nn

from m2d_bench.errors import UsageError

N_MELS = 80
HOP_MS = 10.0
WINDOW_MS = 25.0
F_MIN = 50.0
DEFAULT_NORM_STATS = (-7.1, 4.2)
SAMPLE_RATES = (16000, 32000)

_FRAMES_AT_ONCE = 8192  # 82 s: bounds the memory of hours of audio


class LogMel(nn.Module):
    """Log-mel spectrogram: 80 Slaney mel bins of a power spectrum, 25 ms Hann windows every 10 ms, natural logarithm.

    Args:
        sample_rate: 16000 or 32000 Hz; the upper edge of the mel bank is half of it.

    Source: M2D (2023), section 4; the numbers of nnAudio's MelSpectrogram(center=True, power=2).
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        if sample_rate not in SAMPLE_RATES:
            raise UsageError(f"The front end knows {SAMPLE_RATES} Hz, got sample_rate={sample_rate}.")
        self.sample_rate = sample_rate
        self.n_fft = round(sample_rate * WINDOW_MS / 1000)
        self.hop_length = round(sample_rate * HOP_MS / 1000)
        mel_basis = get_mel(sample_rate, self.n_fft, N_MELS, fmin=F_MIN, fmax=sample_rate / 2)
        self.mel_basis: Tensor
        self.window: Tensor
        self.register_buffer("mel_basis", torch.from_numpy(mel_basis).T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft, dtype=torch.float32), persistent=False)

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Number of frames of waveforms of the given lengths in samples."""
        return lengths.clamp(min=self.n_fft) // self.hop_length + 1

    def forward(self, waveform: Tensor) -> Tensor:
        """Turns waveforms into log-mel spectrograms, in float32 whatever autocast says.

        Args:
            waveform: [B, S] float32 in [-1, 1]; shorter than one window (25 ms) is zero-padded to it.

        Returns:
            [B, 1, 80, frames] with frames = S // hop_length + 1.
        """
        missing = self.n_fft - waveform.shape[-1]
        waveform = nn.functional.pad(waveform, (0, max(0, missing)))
        padded = nn.functional.pad(waveform[:, None], (self.n_fft // 2,) * 2, mode="reflect")[:, 0]
        frames = padded.unfold(-1, self.n_fft, self.hop_length)  # a view [B, frames, n_fft]
        with torch.autocast(waveform.device.type, enabled=False):
            blocks = [self._log_mel(block) for block in frames.split(_FRAMES_AT_ONCE, dim=1)]
        return torch.cat(blocks, dim=1).transpose(1, 2)[:, None]

    def _log_mel(self, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames * self.window.float())
        power = spectrum.real.square() + spectrum.imag.square()
        mel: Tensor = power @ self.mel_basis.float()
        return (mel + torch.finfo(torch.float32).eps).log()
