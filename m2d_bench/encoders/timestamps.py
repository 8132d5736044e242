"""Timestamp embeddings on a regular grid within the audio, finer than the model's own frames where asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from m2d_bench.encoders.frontend import HOP_MS
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.protocol import wrap
from m2d_bench.encoders.waveform import Waveform, check_waveform
from m2d_bench.encoders.zoo import LoadedEncoder
from m2d_bench.errors import UsageError

FINEST_NEEDED_MS = 50.0
"""Hop that event tasks ask for: half of the 100 ms within which an onset must be found."""


def hops(encoder: LoadedEncoder) -> list[float]:
    """Hops in ms that can be had, coarsest first: the model's own, and of the family what shifted passes can give."""
    if not isinstance(encoder, M2DEncoder):
        return [encoder.hop_ms]
    patch_time = encoder.config.vit.patch_size[1]
    return [HOP_MS * frames for frames in range(patch_time, 0, -1) if patch_time % frames == 0]


def default_hop(encoder: LoadedEncoder) -> float:
    """The model's own hop in ms where it is at most 50, else the coarsest of `hops` that is, if there is one."""
    return next((hop for hop in hops(encoder) if hop <= FINEST_NEEDED_MS), encoder.hop_ms)


def check_hop(encoder: LoadedEncoder, hop_ms: float) -> None:
    """Raises a UsageError unless the hop is one of `hops`."""
    if hop_ms not in hops(encoder):
        allowed = ", ".join(f"{hop:g}" for hop in hops(encoder))
        raise UsageError(
            f"hop_ms is {hop_ms!r}; the frames of {wrap(encoder).name} last {encoder.hop_ms:g} ms, so it is one of "
            f"{allowed}."
        )


def regular_timestamp_embeddings(
    encoder: LoadedEncoder, waveform: Waveform, hop_ms: float | None = None
) -> tuple[Tensor, Tensor]:
    """Last layer's features at every `hop_ms` from the start of the audio to its end.

    The log-mel spectrogram is encoded once for each multiple of the hop within a patch, each time with that many zero
    frames before it, and the passes are interleaved. A timestamp is its patch's centre, exact for any length; patches
    centred outside the audio are left out. Where no centre lies within, the audio being shorter than half a patch, its
    first patch stands at its middle.

    Args:
        encoder: An encoder of the family; another one gives its own frames.
        waveform: [S] or [B, S] floats in [-1, 1], from 25 ms to hours.
        hop_ms: One of `hops`; by default `default_hop`.

    Returns:
        Embeddings [B, T, D] float32 on the encoder's device, and timestamps [B, T] float64 in milliseconds on the CPU,
        for not every device has float64.

    Raises:
        UsageError: An impossible hop.
        AudioError: As `M2DEncoder.hidden_states` raises it.
    """
    hop_ms = default_hop(encoder) if hop_ms is None else hop_ms
    check_hop(encoder, hop_ms)
    if not isinstance(encoder, M2DEncoder):
        features, times = encoder.timestamp_embeddings(waveform)
        return features, times.cpu()
    batch, lengths = check_waveform(waveform, None, encoder.device)
    log_mel, frames = encoder.log_mel(batch, lengths)
    hop, patch_time = round(hop_ms / HOP_MS), encoder.config.vit.patch_size[1]
    passes, centre = patch_time // hop, (patch_time - 1) / 2
    duration = batch.shape[1] / encoder.front_end.hop_length  # in frames
    first, last = -int(centre // hop), int((duration - centre) // hop)
    if last < first:
        features = _encode(encoder, log_mel, frames)[:, :1]
        return features, torch.full(features.shape[:2], HOP_MS * duration / 2, dtype=torch.float64)
    size = (len(batch), last - first + 1, encoder.timestamp_embedding_size)
    embeddings = torch.empty(size, device=batch.device)
    for shift in range(passes):  # column c of this pass is number c · passes − shift of the grid
        begin, end = -(-(first + shift) // passes), (last + shift) // passes + 1
        columns = _encode(encoder, pad(log_mel, (shift * hop, 0)), frames + shift * hop)[:, begin:end]
        embeddings[:, begin * passes - shift - first :: passes] = columns
    timestamps = (torch.arange(first, last + 1, dtype=torch.float64) * hop + centre) * HOP_MS
    return embeddings, timestamps.expand(len(batch), -1)


def _encode(encoder: M2DEncoder, log_mel: Tensor, frames: Tensor) -> Tensor:
    """[B, 1, 80, frames] → [B, T, D], in windows of whole patches, so that the frames stay regular.

    The windows are the encoder's own, less the frames that fill no patch (9 of 1001, with patches of 16).
    """
    patch_time = encoder.config.vit.patch_size[1]
    window = encoder.window(int(frames[0])) // patch_time * patch_time
    starts = torch.arange(0, int(frames[0]), window)
    padded = pad(log_mel, (0, len(starts) * window - log_mel.shape[-1]))
    windows = padded.unfold(-1, window, window).permute(0, 3, 1, 2, 4)
    real = (frames[:, None] - starts).clamp(max=window)
    (features,) = encoder.encode_log_mel(windows.flatten(0, 1), real.flatten(), last_only=True)
    total = -(-int(frames[0]) // patch_time)
    windowed: Tensor = features.unflatten(0, (len(frames), -1))
    return windowed.flatten(1, 2)[:, :total]
