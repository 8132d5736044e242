"""EVAR representation classes: `evar.ar_m2d_bench.AR_M2D` and its sisters in a clone of EVAR."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from nnAudio.features import MelSpectrogram
from torch import Tensor, nn

from m2d_bench import compat
from m2d_bench.encoders import checkpoint, variants, zoo
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.frontend import F_MIN, N_MELS
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.patchout import encode_patched_out
from m2d_bench.encoders.protocol import wrap
from m2d_bench.errors import UsageError

try:
    import evar as _evar  # noqa: F401

    compat.restore_for_evar()
    from evar.ar_base import BaseAudioRepr
except ModuleNotFoundError as error:
    if str(error.name).split(".")[0] != "evar":  # a package that EVAR needs
        raise

    class BaseAudioRepr(nn.Module):  # type: ignore[no-redef]
        """Stands in where EVAR is not importable, until a class is made."""

        def __init__(self, cfg: Any) -> None:
            raise UsageError(
                "EVAR cannot be imported here. Run its scripts with m2d-bench evar --evar CLONE …, or from inside the "
                "clone after m2d-bench evar install CLONE."
            )


_OURS, _RUNTIME, _BACKBONE = "encoder.vit.", "runtime.", "runtime.backbone."
"""What stands before an encoder's tensors here, before all of those of M2D's own class, and before its encoder's."""


class _Representation(BaseAudioRepr):  # type: ignore[misc]
    """An encoder of the family under EVAR's contract.

    Its state dict has the keys of M2D's own class, so that what fine-tuning saves of one is read as the other's. The
    configuration and the classes of the task are its local metadata, where `encoders.checkpoint` finds them.

    Args:
        cfg: EVAR's settings. Read are `weight_file` (any name or path of `encoders.zoo`; where it is empty, what
            `encoders.variants` finds), `mean` and `std`, and `dur_frames` (the checkpoint's own where they are
            empty), `output_layers` (their features are stacked; all where empty), `flat_features`, `freeze_embed`,
            `training_mask`; those of the spectrogram are checked. `feature_d` and `weight_file` are set to what was
            found, so that EVAR's files tell.

    Raises:
        UsageError: Settings that the weights contradict, or EVAR cannot be imported.
        CheckpointError: The weights cannot be had.
    """

    variant: ClassVar[str]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        weights = cfg.get("weight_file") or variants.find(self.variant)
        cfg["weight_file"] = self.cfg["weight_file"] = weights
        found = zoo.read(weights, **_settings(cfg))
        if frames := cfg.get("dur_frames"):
            found = checkpoint.with_input(found, int(frames))
        self.encoder = M2DEncoder.from_checkpoint(found)
        self.labels: Labels | None = None
        self.takes_log_mel = False
        _check_spectrogram(cfg, self.encoder.front_end)
        self.encoder.requires_grad_(True)
        self.encoder.vit.pos_embed.requires_grad_(False)
        self.encoder.vit.patch_embed.requires_grad_(not cfg.get("freeze_embed"))
        self.output_layers = _layers(cfg.get("output_layers"), self.encoder.config.vit.depth)
        self.patchout = float(cfg.get("training_mask") or 0)
        if self.patchout and self.encoder.config.features != "flat":
            raise UsageError(
                f"training_mask={self.patchout:g} drops patches while training, which leaves nothing to stack: set "
                "flat_features=True."
            )
        for settings in (self.cfg, cfg):  # EVAR's fine-tuning sizes its head by the settings it passed
            settings["feature_d"] = self.encoder.scene_embedding_size * len(self.output_layers)
        self.register_state_dict_post_hook(_rename_saved)
        self.register_load_state_dict_pre_hook(_rename_loaded)

    def precompute(self, device: Any, data_loader: Any) -> None:
        """Keeps the task's classes; the statistics are the pre-training's or the settings', never the data set's."""
        if dataset := getattr(data_loader, "dataset", None):
            self.labels = Labels(
                classes=tuple(map(str, dataset.classes)),
                multilabel=bool(dataset.multi_label),
                clip_seconds=self.cfg["unit_samples"] / self.encoder.sample_rate,
            )

    def precompute_lms(self, device: Any, data_loader: Any) -> None:
        """The same for EVAR's task as, whose clips are log-mel spectrograms [B, 1, 80, frames], not normalised."""
        self.precompute(device, data_loader)
        self.takes_log_mel = True

    def encode_frames(self, wave: Tensor) -> Tensor:
        """[B, samples] → [B, D, T]; while patches are dropped in training, T counts the patches that stay."""
        length = torch.full((len(wave),), wave.shape[-1])
        if self.takes_log_mel:
            mean, std = self.encoder.config.norm_stats
            log_mel, frames = (wave.float() - mean) / std, length
        else:
            log_mel, frames = self.encoder.log_mel(wave.float(), length)
        if self.training:
            log_mel = self.augment_if_training(log_mel)
            if self.patchout:
                return self._patched_out(log_mel)
        layers = self.encoder.encode_log_mel(log_mel, frames, last_only=self.output_layers == [-1])
        return torch.cat([layers[index] for index in self.output_layers], dim=-1).transpose(1, 2)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, samples] → [B, feature_d], the mean over time."""
        return self.encode_frames(wave).mean(-1)

    def _patched_out(self, log_mel: Tensor) -> Tensor:
        """[B, 1, F, frames] → [B, D, patches that stay]."""
        layers = encode_patched_out(self.encoder, log_mel, self.patchout)
        return torch.cat([layers[index] for index in self.output_layers], dim=-1).transpose(1, 2)


def _rename_saved(ar: _Representation, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Gives a state dict the keys of M2D's own class, and the metadata that `encoders.checkpoint` reads."""
    encoder, front_end = ar.encoder, ar.encoder.front_end
    for key in [key for key in state if key.startswith(prefix + _OURS)]:
        state[prefix + _BACKBONE + key.removeprefix(prefix + _OURS)] = state.pop(key)
    state[f"{prefix}{_BACKBONE}norm_stats"] = torch.tensor(encoder.config.norm_stats)
    spectrogram = MelSpectrogram(
        sr=front_end.sample_rate,
        n_fft=front_end.n_fft,
        hop_length=front_end.hop_length,
        n_mels=N_MELS,
        fmin=F_MIN,
        fmax=front_end.sample_rate / 2,
        verbose=False,
    )
    state.update({f"{prefix}{_RUNTIME}to_spec.{key}": value for key, value in spectrogram.state_dict().items()})
    metadata[checkpoint.CONFIGURATION] = checkpoint.configuration_text(encoder.config, ar.labels)
    if ar.output_layers not in ([-1], [encoder.config.vit.depth - 1]):
        metadata[checkpoint.HEAD_LAYERS] = ar.output_layers


def _rename_loaded(ar: _Representation, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Takes the encoder's tensors from the keys of M2D's own class; the others are not needed here."""
    names = ar.encoder.vit.state_dict().keys()
    for key in [key for key in state if key.startswith(prefix + _RUNTIME)]:
        tensor, inner = state.pop(key), key.removeprefix(prefix + _BACKBONE)
        if inner in names:
            state[prefix + _OURS + inner] = tensor


class AR_M2D(_Representation):
    """M2D."""

    variant = "m2d"


class AR_M2D_S(_Representation):
    """M2D-S."""

    variant = "m2d_s"


class AR_M2D_AS(_Representation):
    """M2D-AS."""

    variant = "m2d_as"


class AR_MSM_MAE(_Representation):
    """MSM-MAE."""

    variant = "msm_mae"


class AR_ENCODER(BaseAudioRepr):  # type: ignore[misc]
    """Any encoder under EVAR's contract, as it is: frozen, its own scene and timestamp embeddings.

    Args:
        cfg: EVAR's settings. Read are `weight_file` (any name of `encoders.zoo`; the default model where it is empty)
            and `sample_rate`, which is checked. `feature_d` and `weight_file` are set to what was found.

    Raises:
        UsageError: Another sample rate, or EVAR cannot be imported; and what `zoo.load` raises.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        name = cfg.get("weight_file") or zoo.DEFAULT
        self.encoder = wrap(zoo.load(name, device="cpu", precision="fp32"))
        for settings in (self.cfg, cfg):
            settings["weight_file"], settings["feature_d"] = name, self.encoder.scene_embedding_size
        _check(cfg, sample_rate=self.encoder.sample_rate)

    def encode_frames(self, wave: Tensor) -> Tensor:
        """[B, samples] → [B, D, T]; a UsageError where the encoder gives no timestamp embeddings."""
        return self.encoder.timestamp_embeddings(wave.float())[0].transpose(1, 2)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, samples] → [B, feature_d].

        Raises:
            UsageError: In EVAR's fine-tuning.
        """
        if self.training and torch.is_grad_enabled():
            raise UsageError(
                f"{self.encoder.name} is frozen here: EVAR fine-tunes models of the M2D family (settings m2d_bench, "
                "m2d_s_bench, …), lineareval takes any encoder."
            )
        return self.encoder.scene_embeddings(wave.float()).to(wave.device)


def _settings(cfg: MutableMapping[str, Any]) -> dict[str, Any]:
    """Settings of the encoder that EVAR's name."""
    settings: dict[str, Any] = {"features": "flat" if cfg.get("flat_features") else "stacked"}
    mean, std = cfg.get("mean"), cfg.get("std")
    if (mean is None) != (std is None):
        raise UsageError(f"mean={mean} and std={std}: give both, or leave both empty for the checkpoint's own.")
    if mean is not None:
        settings["norm_stats"] = (float(mean), float(std))  # type: ignore[arg-type]
    return settings


def _check_spectrogram(cfg: MutableMapping[str, Any], front_end: Any) -> None:
    _check(
        cfg,
        sample_rate=front_end.sample_rate,
        n_fft=front_end.n_fft,
        window_size=front_end.n_fft,
        hop_size=front_end.hop_length,
        n_mels=N_MELS,
        f_min=F_MIN,
        f_max=front_end.sample_rate / 2,
    )


def _check(cfg: MutableMapping[str, Any], **expected: float) -> None:
    """Raises a UsageError where a setting is another than the encoder needs; an empty one is none."""
    for name, value in expected.items():
        if cfg.get(name) is not None and cfg[name] != value:
            raise UsageError(
                f"{name}={cfg[name]}, but {cfg.get('weight_file')} takes {value:g}: set it, or take the settings "
                "m2d_32k_bench for a model at 32 kHz."
            )


def _layers(named: Sequence[int] | None, depth: int) -> list[int]:
    layers = list(named) if named else list(range(depth))
    if wrong := [index for index in layers if not -depth <= index < depth]:
        raise UsageError(f"output_layers {wrong}: the encoder has {depth}, from 0 or from -1 backwards.")
    return layers
