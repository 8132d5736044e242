"""`PortableM2D` and `RuntimeM2D` of the reference tool: its names and numbers on our encoder.

Source: names and arguments are those of github.com/nttcslab/m2d, examples/portable_m2d.py and m2d/runtime_audio.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench.encoders import zoo
from m2d_bench.encoders.checkpoint import Checkpoint
from m2d_bench.encoders.classifier import Head
from m2d_bench.encoders.frontend import F_MIN, N_MELS
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.vit import ViT
from m2d_bench.encoders.waveform import Waveform, check_waveform
from m2d_bench.errors import CheckpointError, UsageError


class PortableM2D(nn.Module):
    """An encoder, and a head where classes are asked for, in evaluation mode; all but its positions can be trained.

    Args:
        weight_file: A path, or another name of a model of the family that `zoo.load` takes.
        num_classes: Outputs of the head, which is the checkpoint's, else a fresh one; None for no head.
        freeze_embed: Whether the patch embedding stays as it is, too.
        flat_features: Whether features are those of every patch (D), not stacked to those of a frame (N_F·D). A head of
            D inputs asks for it.

    Raises:
        UsageError: Unknown name.
        CheckpointError: The weights cannot be had, or the head is of another shape.
    """

    def __init__(
        self,
        weight_file: str | os.PathLike[str],
        num_classes: int | None = None,
        freeze_embed: bool = False,
        flat_features: bool | None = None,
    ) -> None:
        super().__init__()
        found = zoo.read(weight_file)
        flat = bool(flat_features) or (num_classes is not None and found.config.features == "flat")
        self.encoder = M2DEncoder.from_checkpoint(replace(found, config=replace(found.config, features="stacked")))
        self.encoder.requires_grad_(True)
        self.backbone.pos_embed.requires_grad_(False)
        self.backbone.patch_embed.requires_grad_(not freeze_embed)
        self.cfg = _facts(self.encoder, flat)
        self.sample_rate = self.encoder.sample_rate
        if num_classes is not None:
            head = _head(found, self.cfg.feature_d, num_classes)
            self.head_norm, self.head = head.norm, head.linear
        self.eval()

    @property
    def backbone(self) -> ViT:
        """The transformer."""
        return self.encoder.vit

    def to_feature(self, batch_audio: Waveform) -> Tensor:
        """Waveforms [B, S] → log-mel spectrograms [B, 1, 80, frames], not normalised."""
        log_mel: Tensor = self.encoder.front_end(check_waveform(batch_audio, None, self.encoder.device)[0])
        return log_mel

    to_log_mel_spec = to_feature

    def normalize_batch(self, x: Tensor) -> Tensor:
        """Log-mel spectrograms normalised by the statistics of pre-training."""
        mean, std = self.encoder.config.norm_stats
        return (x - mean) / std

    def to_normalized_feature(self, batch_audio: Waveform) -> Tensor:
        """Waveforms [B, S] → normalised log-mel spectrograms [B, 1, 80, frames]."""
        return self.normalize_batch(self.to_feature(batch_audio))

    def encode_lms(self, x: Tensor, average_per_time_frame: bool = False) -> Tensor:
        """Normalised log-mel spectrograms → features.

        Args:
            x: [B, 1, 80, frames].
            average_per_time_frame: Of flat features, whether those of a frame are averaged.

        Returns:
            [B, T, N_F·D]; flat [B, T·N_F, D], patches of each window frequency-major, or averaged [B, T, D].
        """
        return self._layers(x, average_per_time_frame, last_only=True)[0]

    def encode(self, batch_audio: Waveform, average_per_time_frame: bool = False) -> Tensor:
        """Waveforms [B, S] → features as of `encode_lms`."""
        return self.encode_lms(self.to_normalized_feature(batch_audio), average_per_time_frame=average_per_time_frame)

    def forward(self, batch_audio: Waveform, average_per_time_frame: bool = False) -> Tensor:
        """Waveforms [B, S] → logits [B, C] with a head, else features as of `encode`."""
        x = self.encode(batch_audio, average_per_time_frame=average_per_time_frame)
        return self.head(self.head_norm(x.mean(1))) if hasattr(self, "head") else x

    def get_scene_embeddings(self, batch_audio: Waveform) -> Tensor:
        """Waveforms [B, S] → the mean of their features, [B, N_F·D] or flat [B, D]."""
        return self.encode(batch_audio).mean(1)

    def get_timestamp_embeddings(self, batch_audio: Waveform) -> tuple[Tensor, Tensor]:
        """Features a frame, and the times in ms at which the frames begin, stretched over the clip.

        `M2DEncoder.timestamp_embeddings` gives the centres of the frames instead.

        Args:
            batch_audio: [B, S].

        Returns:
            [B, T, N_F·D] or flat [B, T, D], and [B, T].
        """
        x = self.encode(batch_audio, average_per_time_frame=True)
        step = batch_audio.shape[-1] / self.sample_rate / x.shape[1] * 1000
        return x, (torch.arange(x.shape[1]) * step).expand(len(x), -1)

    def forward_frames(self, batch_audio: Waveform) -> tuple[Tensor, Tensor]:
        """As `get_timestamp_embeddings`, with a head the logits of every frame, [B, T, C]."""
        x, timestamps = self.get_timestamp_embeddings(batch_audio)
        if hasattr(self, "head"):
            x = self.head(self.head_norm(x.transpose(1, 2)).transpose(1, 2))
        return x, timestamps

    def _layers(self, x: Tensor, average_per_time_frame: bool, last_only: bool) -> list[Tensor]:
        """Normalised log-mel spectrograms → each layer's features as of `encode_lms`."""
        layers = self.encoder.encode_log_mel(x, torch.full((len(x),), x.shape[-1]), last_only=last_only)
        if not self.cfg.flat_features:
            return layers
        grids = [layer.unflatten(-1, (self.encoder.config.vit.grid_size[0], -1)) for layer in layers]
        if average_per_time_frame:
            return [grid.mean(2) for grid in grids]
        columns = self.encoder.window_columns(x.shape[-1])
        return [torch.cat([w.transpose(1, 2).flatten(1, 2) for w in grid.split(columns, 1)], 1) for grid in grids]


class RuntimeM2D(PortableM2D):
    """The same under the names of `m2d.runtime_audio`, with the features of every layer.

    Args:
        cfg: Has any of weight_file, freeze_embed and flat_features as attributes, where they are not given here.
        weight_file: As for PortableM2D.
        training_mask: Not here; `m2d-bench finetune` trains with structured patchout.
        encoder_only: Not needed; files with and without a predictor are read alike.
        dur_frames: Not here; `load_encoder(…, encoding="one_pass", dur_frames=N)` encodes in one pass.
        num_classes: As for PortableM2D.
        freeze_embed: As for PortableM2D.
        flat_features: As for PortableM2D.

    Raises:
        UsageError: Unknown name, or what is not here.
        CheckpointError: As for PortableM2D.
    """

    def __init__(
        self,
        cfg: Any = None,
        weight_file: str | os.PathLike[str] | None = None,
        training_mask: float = 0.0,
        encoder_only: bool | None = None,
        dur_frames: int | None = None,
        num_classes: int | None = None,
        freeze_embed: bool | None = None,
        flat_features: bool | None = None,
    ) -> None:
        if training_mask or getattr(cfg, "training_mask", 0.0):
            raise UsageError("RuntimeM2D takes no training_mask here; m2d-bench finetune trains with patchout.")
        if dur_frames or getattr(cfg, "dur_frames", None):
            raise UsageError(
                "RuntimeM2D takes no dur_frames here; m2d_bench.load_encoder(NAME, encoding='one_pass', dur_frames=N) "
                "encodes in one pass."
            )
        if not (weight_file := weight_file or getattr(cfg, "weight_file", None)):
            raise UsageError("RuntimeM2D: which weights? Pass weight_file, or a cfg that has one: a path or a name.")
        super().__init__(
            weight_file,
            num_classes,
            bool(getattr(cfg, "freeze_embed", False) if freeze_embed is None else freeze_embed),
            getattr(cfg, "flat_features", None) if flat_features is None else flat_features,
        )

    def to_normalized_spec(self, batch_audio: Waveform) -> Tensor:
        """As `to_normalized_feature`."""
        return self.to_normalized_feature(batch_audio)

    def encode_lms(  # type: ignore[override]
        self, x: Tensor, return_layers: bool = False, average_per_time_frame: bool = False
    ) -> Tensor | list[Tensor]:
        """As `PortableM2D.encode_lms`; with `return_layers` a list of every layer's, the last after the final norm."""
        layers = self._layers(x, average_per_time_frame, last_only=not return_layers)
        return layers if return_layers else layers[0]


def _facts(encoder: M2DEncoder, flat: bool) -> SimpleNamespace:
    """What users of the reference tool read in `cfg`."""
    vit, front_end, (mean, std) = encoder.config.vit, encoder.front_end, encoder.config.norm_stats
    return SimpleNamespace(
        flat_features=flat,
        feature_d=vit.width * (1 if flat else vit.grid_size[0]),
        input_size=list(vit.input_size),
        patch_size=list(vit.patch_size),
        mean=mean,
        std=std,
        sample_rate=encoder.sample_rate,
        n_fft=front_end.n_fft,
        window_size=front_end.n_fft,
        hop_size=front_end.hop_length,
        n_mels=N_MELS,
        f_min=F_MIN,
        f_max=encoder.sample_rate / 2,
    )


def _head(found: Checkpoint, features: int, num_classes: int) -> Head:
    """The checkpoint's head, or a fresh one where it has none."""
    head = Head(features, num_classes)
    if not found.head:
        return head.initialise(torch.default_generator)
    expected, received = ({key: list(x.shape) for key, x in state.items()} for state in (head.state(), found.head))
    if received != expected:
        raise CheckpointError(
            f"{found.config.name}: its head is {received}; {num_classes} classes of {features} features take "
            f"{expected}. Pass its num_classes, or none for the features alone."
        )
    return head.load(found.head)
