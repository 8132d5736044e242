"""`s3prl:NAME[@CKPT]`: upstreams of s3prl."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench import compat
from m2d_bench.encoders.foreign import ForeignEncoder, content_of, explained
from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown

PREFIX = "s3prl:"
SAMPLE_RATE = 16000


class S3prlEncoder(nn.Module):
    """An upstream's layers; the last one, and its mean over time, are the embeddings.

    Args:
        upstream: A `S3PRLUpstream`.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, upstream: Any) -> None:
        super().__init__()
        self.upstream = upstream
        self.hop_ms = 1000 * upstream.downsample_rates[-1] / SAMPLE_RATE
        self.scene_embedding_size = self.timestamp_embedding_size = int(upstream.hidden_sizes[-1])

    def hidden_states(self, waveform: Tensor) -> list[Tensor]:
        """[B, S] → every layer of the upstream, [B, T, D] each.

        A clip that ends in zeros goes alone: some upstreams (mel, linear) take them for the padding of a batch.
        """
        if len(waveform) > 1 and bool((waveform[:, -1] == 0).any()):
            clips = [self.hidden_states(clip[None]) for clip in waveform]
            return [torch.cat(layers) for layers in zip(*clips, strict=True)]
        layers, _ = self.upstream(waveform, torch.full((len(waveform),), waveform.shape[1]))
        return list(layers)

    def timestamp_embeddings(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S] → the last layer's frames whose centres lie within the audio, and these centres [B, T] in ms."""
        features = self.hidden_states(waveform)[-1]
        times = (torch.arange(features.shape[1], dtype=torch.float64) + 0.5) * self.hop_ms
        end = 1000 * waveform.shape[1] / SAMPLE_RATE
        times = times[: max(1, int((times <= end).sum()))].clamp(max=end)
        return features[:, : len(times)], times.expand(len(features), -1)

    def scene_embeddings(self, waveform: Tensor) -> Tensor:
        """[B, S] → mean over time of the last layer, [B, D]."""
        return self.hidden_states(waveform)[-1].mean(1)


def load(name: str) -> ForeignEncoder:
    """Loads an upstream of s3prl in float32.

    Args:
        name: `s3prl:NAME`, with `@CKPT` for a path or address of its weights.

    Raises:
        UsageError: s3prl is not installed, no such upstream, or an error while it is loaded.
    """
    if find_spec("s3prl") is None:
        raise UsageError(f"{PREFIX} models need s3prl. Run pip install 'm2d-bench[superb]'.")
    compat.restore()
    from s3prl import hub

    upstream, _, weights = name.removeprefix(PREFIX).partition("@")
    if upstream not in hub.options():
        raise unknown("upstream of s3prl", upstream, hub.options())
    weights = os.path.expanduser(weights)
    _check_weights(name, weights, upstream not in hub.options(only_registered_ckpt=True))
    with explained(name, None), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some hold random numbers that nothing uses, and a digest would tell
        model = _upstream(upstream, weights or None)
    shown = f"{PREFIX}{upstream}" + (f"@{Path(weights).name}" if weights else "")
    code = version("s3prl").encode() + (content_of(weights) if weights else b"")
    return ForeignEncoder(S3prlEncoder(model), shown, code, None)


def _check_weights(name: str, weights: str, takes_any: bool) -> None:
    """Refuses what s3prl would ignore or not find after @; upstreams named hf_… take a name of Hugging Face's."""
    if weights.startswith("layer="):
        raise UsageError(f"{name}: upstreams of s3prl have no {weights}; linear takes one as --layer.")
    if weights and not takes_any:
        raise UsageError(f"{name}: takes no weights; upstreams whose names end in _local, _url or _custom do.")
    if weights and "://" not in weights and not name.startswith(f"{PREFIX}hf_") and not os.path.exists(weights):
        raise UsageError(f"{name}: {weights} is neither a file that exists nor an address with ://.")


def _upstream(name: str, weights: str | None) -> nn.Module:
    """s3prl's own module around an upstream; the last frame stands for all that an upstream leaves out at the end.

    s3prl does so too, and stops where that is as much as what is there, as in clips of 50 ms.
    """
    from s3prl.nn import S3PRLUpstream

    class Upstream(S3PRLUpstream):  # type: ignore[misc]  # s3prl has no types
        def _match_length(self, xs: Tensor, target_max_len: int) -> Tensor:
            missing = max(0, target_max_len - xs.shape[1])
            return torch.cat([xs, xs[:, -1:].expand(-1, missing, -1)], dim=1)[:, :target_max_len]

    given: Any = (name, weights)  # None for weights is its default, whatever its annotation says
    return Upstream(*given)
