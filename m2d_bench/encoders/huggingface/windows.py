"""Models that take a spectrogram of one length: Whisper's encoder, AST, and the audio tower of CLAP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench.encoders.foreign import explained
from m2d_bench.encoders.huggingface.base import ExtractorConfig, HuggingFaceEncoder
from m2d_bench.encoders.precision import autocast

_LEAST_SECONDS = 0.025
"""Shorter clips are zero-padded to it: a window of the spectrogram."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the frames of a model lie, in samples.

    Args:
        hop: Between frames.
        field: What a clip's first frame needs.
        centre: Middle of the first frame.
        frames: Frames of a window.
        window: What the model takes at a time; the next window begins `frames` hops later.
    """

    hop: int
    field: int
    centre: float
    frames: int
    window: int


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of model.

    Args:
        parts: The part of AutoModel's model that encodes waveforms; else it is the whole.
        grid: Configuration of the part and feature extractor → grid.
        states: Output of the part, frames of a window, pooled or not (see `HuggingFaceEncoder`) → [B, frames, D] of
            every layer.
        depth: Number of layers; by default the configuration's.
    """

    parts: tuple[str, ...]
    grid: Callable[[Any, Any], Grid]
    states: Callable[[Any, int, bool], tuple[Tensor, ...]]
    depth: int | None = None


class WindowEncoder(HuggingFaceEncoder):
    """A model whose feature extractor pads every clip to one length: longer ones are encoded window by window.

    Args:
        config: What was loaded.
        model: The part of the model of transformers that encodes waveforms.
        extractor: Its feature extractor.
    """

    config: ExtractorConfig

    def __init__(self, config: ExtractorConfig, model: Any, extractor: Any) -> None:
        super().__init__(config, model)
        kind = KINDS[config.model["model_type"]]
        self._extractor, self._states = extractor, kind.states
        self._grid = grid = kind.grid(model.config, extractor)
        self.depth = kind.depth or model.config.num_hidden_layers
        self.hop_length, self.field_length, self.centre = grid.hop, grid.field, grid.centre

    def _blocks(self, clips: Tensor, pooled: bool) -> tuple[Tensor, ...]:
        n_frames = int(self.frame_counts(torch.tensor(clips.shape[1])))
        starts = range(0, n_frames, self._grid.frames)
        windows = [self._window(clips[:, start * self._grid.hop :][:, : self._grid.window], pooled) for start in starts]
        return tuple(torch.cat(layer, dim=1)[:, :n_frames] for layer in zip(*windows, strict=True))

    def _window(self, clips: Tensor, pooled: bool) -> tuple[Tensor, ...]:
        """Clips that fit a window [B, S] → all its frames, [B, frames, D] of every layer.

        The feature extractor is given one clip at a time: what it makes of several may depend on all.
        """
        least = int(_LEAST_SECONDS * self.sample_rate)
        padded = nn.functional.pad(clips, (0, max(0, least - clips.shape[1]))).detach().cpu().numpy()
        with explained(self.config.name, None):
            features = [self._extractor(clip, sampling_rate=self.sample_rate, return_tensors="pt") for clip in padded]
            inputs = {key: torch.cat([each[key] for each in features]).to(clips.device) for key in features[0]}
            with autocast(self.precision, clips.device):
                output = self.model(**inputs, output_hidden_states=True)
        return self._states(output, self._grid.frames, pooled)


def _blocks(output: Any) -> tuple[Tensor, ...]:
    """The output of every block, the last one after the final norm."""
    return (*output.hidden_states[1:-1], output.last_hidden_state)


def _whisper_grid(config: Any, extractor: Any) -> Grid:
    """Every second log-mel frame is the centre of a frame; those count that lie within the clip."""
    frames, hop = config.max_source_positions, 2 * extractor.hop_length
    return Grid(hop=hop, field=1, centre=0, frames=frames, window=frames * hop)


def _ast_grid(config: Any, extractor: Any) -> Grid:
    """Patches of Kaldi's frames of 25 ms every 10 ms; those count that lie wholly within the clip.

    A window begins where the next patch of the last one would.
    """
    width, shift = (extractor.sampling_rate * ms // 1000 for ms in (25, 10))
    field = width + (config.patch_size - 1) * shift
    return Grid(
        hop=config.time_stride * shift,
        field=field,
        centre=field / 2,
        frames=(config.max_length - config.patch_size) // config.time_stride + 1,
        window=width + (config.max_length - 1) * shift,
    )


def _ast_states(output: Any, frames: int, pooled: bool) -> tuple[Tensor, ...]:
    """Mean over frequency of the patches, which come row by row of time behind two tokens; pooled, the tokens' mean.

    Source: AST (2021), section 2; `ASTModel`, whose classifier takes the mean of both tokens.
    """
    if pooled:
        return tuple(state[:, :2].mean(1, keepdim=True).expand(-1, frames, -1) for state in _blocks(output))
    return tuple(state[:, 2:].unflatten(1, (-1, frames)).mean(1) for state in _blocks(output))


def _clap_grid(config: Any, extractor: Any) -> Grid:
    """The spectrogram's `spec_size / num_mel_bins` pieces are stacked; every stage but the first halves their time.

    Source: HTS-AT (2022), section 2.1; `ClapAudioEncoder`.
    """
    stride = config.patch_stride if isinstance(config.patch_stride, int) else config.patch_stride[1]
    columns = config.spec_size // 2 ** (len(config.depths) - 1) // stride
    frames = columns * (config.spec_size // config.num_mel_bins)
    hop = extractor.nb_max_samples // frames
    return Grid(hop=hop, field=hop, centre=hop / 2, frames=frames, window=extractor.nb_max_samples)


def _clap_states(output: Any, frames: int, pooled: bool) -> tuple[Tensor, ...]:
    """Mean over frequency of the last stage [B, D, frequency, time]; pooled, its mean over both, without projection."""
    if pooled:
        return (output.pooler_output[:, None].expand(-1, frames, -1),)
    return (output.last_hidden_state.mean(2).transpose(1, 2),)


KINDS = {
    "audio-spectrogram-transformer": Kind(parts=(), grid=_ast_grid, states=_ast_states),
    "clap": Kind(parts=("audio_model",), grid=_clap_grid, states=_clap_states, depth=1),  # its stages differ in size
    "whisper": Kind(parts=("encoder",), grid=_whisper_grid, states=lambda output, frames, pooled: _blocks(output)),
}
"""By the `model_type` of AutoModel's model."""
