"""The three functions of the HEAR 2021 common API.

Source: https://hearbenchmark.com/hear-api.html
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench.encoders import timestamps, variants, zoo
from m2d_bench.encoders.protocol import wrap
from m2d_bench.encoders.zoo import LoadedEncoder
from m2d_bench.errors import UsageError
from m2d_bench.settings import Compute


class HearModel(nn.Module):
    """An encoder as HEAR's tools expect a model: a module with a sample rate and embedding sizes.

    One that gives no timestamp embeddings has no `timestamp_embedding_size`; it is for HEAR's scene tasks.

    Args:
        encoder: The encoder.
        hop_ms: Milliseconds between timestamps, finer than the encoder's own by shifted passes; by default the
            encoder's own where it is at most 50, else the coarsest finer one that is.
        shift_scenes: Whether scene embeddings average over the shifted passes too.

    Raises:
        UsageError: A hop that shifted passes cannot give.
    """

    def __init__(self, encoder: LoadedEncoder, hop_ms: float | None = None, shift_scenes: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.shift_scenes = shift_scenes
        self.sample_rate = encoder.sample_rate
        self.scene_embedding_size = encoder.scene_embedding_size
        self.hop_ms = 0.0
        if wrap(encoder).has_frames:
            self.hop_ms = timestamps.default_hop(encoder) if hop_ms is None else hop_ms
            timestamps.check_hop(encoder, self.hop_ms)
            self.timestamp_embedding_size = encoder.timestamp_embedding_size


def load_model(
    model_file_path: str | os.PathLike[str] = "",
    *,
    hop_ms: float | None = None,
    shift_scenes: bool = False,
    device: str = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
) -> HearModel:
    """Loads a model by any name `m2d_bench.encoders.zoo` knows, frozen and in evaluation mode.

    Args:
        model_file_path: A path, a released name, or another of `zoo.FORMS`; the default model if empty.
        hop_ms: As for HearModel.
        shift_scenes: As for HearModel.
        device: auto (a GPU if there is one), cpu, cuda, …; `.to()` moves the model later.
        precision: auto, fp32 or bf16; embeddings are float32 in any case.
        trust_remote_code: Run the code that the repository of an hf: model holds. Read it first.

    Raises:
        UsageError: Unknown name or setting.
        CheckpointError: The weights cannot be had, or are not what they claim to be.
    """
    compute = Compute(device=device, precision=precision, trust_remote_code=trust_remote_code)  # type: ignore[arg-type]
    encoder = zoo.load(model_file_path or zoo.DEFAULT, compute=compute)
    return HearModel(encoder, hop_ms, shift_scenes).eval()


def loader_of(variant: str) -> Callable[..., HearModel]:
    """A `load_model` whose default is the weights that `m2d_bench.encoders.variants` finds.

    Args:
        variant: m2d, m2d_s, m2d_as or msm_mae.
    """

    def load(model_file_path: str | os.PathLike[str] = "", **settings: Any) -> HearModel:
        return load_model(model_file_path or variants.find(variant), **settings)

    return load


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeddings at regular times within the audio.

    Args:
        audio: [n_sounds, samples] in [-1, 1] at `model.sample_rate` Hz, from 25 ms to hours.
        model: What `load_model` returned.

    Returns:
        Embeddings [n_sounds, n_timestamps, timestamp_embedding_size] float32, and the centres of their frames in
        milliseconds, [n_sounds, n_timestamps] float64 on the CPU; both without gradient.

    Raises:
        AudioError: Wrong shape, type or length, or values that are not finite.
        UsageError: Not a model of `load_model`, or one that gives none.
    """
    with torch.no_grad():
        return timestamps.regular_timestamp_embeddings(_encoder(model), audio, model.hop_ms)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One embedding a sound: the mean over its frames.

    Args and Raises: as for `get_timestamp_embeddings`.

    Returns:
        [n_sounds, scene_embedding_size] float32, without gradient.
    """
    with torch.no_grad():
        encoder = _encoder(model)
        if model.shift_scenes:
            return timestamps.regular_timestamp_embeddings(encoder, audio, model.hop_ms)[0].mean(1)
        return encoder.scene_embeddings(audio)


def _encoder(model: HearModel) -> LoadedEncoder:
    if not isinstance(model, HearModel):
        raise UsageError(f"Expected a model that load_model of this module returned, got {type(model).__name__}.")
    return model.encoder
