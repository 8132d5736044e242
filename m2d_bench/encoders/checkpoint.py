"""Checkpoint files ↔ encoders: every released format, read strictly, and written back.

Source: the formats are those of the releases of github.com/nttcslab/m2d and of EVAR's fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from m2d_bench.encoders.frontend import DEFAULT_NORM_STATS, N_MELS
from m2d_bench.encoders.m2d import EncoderConfig, M2DEncoder
from m2d_bench.encoders.vit import SIZES, ViTConfig
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.registry import unknown
from m2d_bench.settings import replacing

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

SUFFIXES = (".pth", ".pt", ".safetensors")
_ANCHOR = "patch_embed.proj.weight"
_LABELS = "labels"
_ENCODER_KEY = re.compile(r"(cls_token|pos_embed|patch_embed\.|blocks\.|norm\.)")
_EXTRA_KEY = re.compile(
    r"(norm_stats$|mask_token$|decoder_|target_|offline_predictor\.|audio_proj\.|text_proj\.|logit_scale$|head\.)"
)
_HEAD_PLACES = {"running_mean": "norm", "running_var": "norm", "weight": "mlp.mlp.0", "bias": "mlp.mlp.0"}
_HEAD_KEY = re.compile(r".*\bhead\.(norm|mlp)\.")
_NAME = re.compile(
    r"(?:(?P<family>m2d_clap|m2d_as|m2d_s|m2d_x|m2d_d2v|m2d|msm_mae)_vit_(?P<size>tiny|small|base|large)-)?"
    r"(?P<freq>\d+)x(?P<time>\d+)p(?P<patch_freq>\d+)x(?P<patch_time>\d+)(?:p(?P<khz>16|32)k)?"
)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a head was trained to tell apart.

    Args:
        classes: Names of its outputs.
        multilabel: Whether a clip may have several of them.
        clip_seconds: Duration of the clips; shorter ones were zero-padded to it.
    """

    classes: tuple[str, ...]
    multilabel: bool
    clip_seconds: float


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds.

    Args:
        config: Configuration of the encoder, read from the tensors and cross-checked with the name.
        encoder: The encoder's tensors, float32, under the names of `vit.ViT`.
        extras: Everything else the family's checkpoints may carry (decoder, target encoder, projections of CLAP, …).
        head: Head of a fine-tuned model: `running_mean`, `running_var`, `weight`, `bias`; empty if there is none.
        labels: What the head's outputs stand for; None where the file does not say.
        ignored: Keys that belong to none of these and were left out (buffers of the tool that wrote the file).
    """

    config: EncoderConfig
    encoder: State
    extras: State = field(default_factory=dict)
    head: State = field(default_factory=dict)
    labels: Labels | None = None
    ignored: tuple[str, ...] = ()

    def build(self) -> M2DEncoder:
        """The encoder with these weights, frozen and in evaluation mode."""
        encoder = M2DEncoder(self.config)
        encoder.vit.load_state_dict(self.encoder)
        return encoder.eval().requires_grad_(False)


def parse_name(name: str) -> EncoderConfig | None:
    """Configuration that a released name states, or None if the name is of another kind.

    Args:
        name: `{family}_vit_{size}-80x{frames}p{pf}x{pt}[p{16k|32k}][-…]`; MSM-MAE of 2022, a ViT-Base, is named
            `80x{frames}p{pf}x{pt}[…]`.
    """
    match = _NAME.match(name)
    if match is None:
        return None
    width, depth = SIZES[match["size"] or "base"]
    vit = ViTConfig(
        width=width,
        depth=depth,
        patch_size=(int(match["patch_freq"]), int(match["patch_time"])),
        input_size=(int(match["freq"]), int(match["time"])),
    )
    return EncoderConfig(name=name, vit=vit, sample_rate=32000 if match["khz"] == "32" else 16000)


def read(path: str | os.PathLike[str], **changes: Any) -> Checkpoint:
    """Reads a checkpoint file, strictly and without running code from it.

    Args:
        path: `.pth`, `.pt` or `.safetensors` file, or a folder that holds exactly one.
        changes: Fields of EncoderConfig to set (`features`, `encoding`, `dur_frames`, `norm_stats`, `sample_rate`,
            `name`); and `patch_size`, to accept the tensors' patch size when the folder's name states another.

    Raises:
        CheckpointError: The file cannot be read, holds code, lacks encoder keys, has unexpected ones, or contradicts
            its name.
        UsageError: A change names no setting, or an impossible one.
    """
    path = _file(Path(path))
    stated = next((c for c in map(parse_name, (path.parent.name, path.stem)) if c), None)
    try:
        return _interpret(path, stated, changes)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: malformed, no checkpoint of the family looks like this: {error}") from error


def read_state(path: str | os.PathLike[str]) -> State:
    """The tensors of a checkpoint file as they are; for what has no front end, such as encoders of images.

    Raises:
        CheckpointError: The file cannot be read, holds code, or no encoder of the family.
    """
    path = _file(Path(path))
    return _unwrap(path, _read_pickle(path))


def _interpret(path: Path, stated: EncoderConfig | None, changes: dict[str, Any]) -> Checkpoint:
    labels: Any
    if path.suffix.lower() == ".safetensors":
        state, config, labels = _read_safetensors(path)
    else:
        state, config = _read_pickle(path), None
        labels = state.get(_LABELS) if isinstance(state, Mapping) else None
    encoder, extras, head, ignored = _sort_keys(path, _unwrap(path, state))
    _rename_keys_of_2022(encoder)
    norm_stats, patch_size = extras.pop("norm_stats", None), changes.pop("patch_size", None)
    if config is None:
        try:
            vit = _shape(path, encoder, stated, patch_size)
            config = EncoderConfig(
                name=path.parent.name if parse_name(path.parent.name) else path.stem,
                vit=vit,
                sample_rate=_sample_rate(path, stated),
                norm_stats=_norm_stats(path, norm_stats) if "norm_stats" not in changes else DEFAULT_NORM_STATS,
                features=_features(path, head, vit),
            )
        except UsageError as error:
            raise CheckpointError(f"{path}: {error}") from error
    _check_encoder(path, encoder, config)
    config = change(config, changes)
    return Checkpoint(
        config=config,
        encoder=encoder,
        extras=extras,
        head=head,
        labels=_labels(labels),
        ignored=ignored,
    )


def change(config: EncoderConfig, changes: Mapping[str, Any]) -> EncoderConfig:
    """A configuration with some settings changed; an unknown one is a UsageError."""
    allowed = [f.name for f in fields(EncoderConfig) if f.name != "vit"]
    for name in changes:
        if name not in allowed:
            raise unknown("setting of a model", name, allowed, f"these: {', '.join(allowed)}, patch_size")
    return replace(config, **changes)


def save(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint: `.pth` in the released format, `.safetensors` with the configuration inside.

    The file appears whole or not at all.

    Raises:
        CheckpointError: Unknown suffix.
    """
    path = Path(path)
    mean_std = torch.tensor(checkpoint.config.norm_stats)
    head = {f"head.{_HEAD_PLACES[key]}.{key}": value for key, value in checkpoint.head.items()}
    state = {**checkpoint.encoder, **checkpoint.extras, **head, "norm_stats": mean_std}
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: a checkpoint's suffix is one of {', '.join(SUFFIXES)}.")
    labels = {_LABELS: asdict(checkpoint.labels)} if checkpoint.labels else {}
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            metadata = {"m2d_bench": json.dumps({**asdict(checkpoint.config), **labels})}
            file.write(safetensors.torch.save({k: v.contiguous() for k, v in state.items()}, metadata))
        else:
            torch.save({"model": state, **labels}, file)


def _file(path: Path) -> Path:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise CheckpointError(f"{path} is a folder with {len(found)} checkpoints ({names}); name one file.")
        path = found[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path}: a checkpoint's suffix is one of {', '.join(SUFFIXES)}.")
    return path


def _labels(found: Any) -> Labels | None:
    """Labels as `save` writes them; what others keep under this name is not read."""
    if not isinstance(found, Mapping) or set(found) != {each.name for each in fields(Labels)}:
        return None
    return Labels(**{**found, "classes": tuple(found["classes"])})


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts keep their arguments beside
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded safely. Only tensors are read from a pickle "
            f"(weights_only=True), nothing in it is run. torch says: {cause}"
        ) from error


def _read_safetensors(path: Path) -> tuple[State, EncoderConfig | None, dict[str, Any] | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    if "m2d_bench" not in metadata:
        return state, None, None
    values = json.loads(metadata["m2d_bench"])
    labels = values.pop(_LABELS, None)
    vit: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("vit").items()}
    config = EncoderConfig(**{**values, "norm_stats": tuple(values["norm_stats"]), "vit": ViTConfig(**vit)})
    return state, config, labels


def _unwrap(path: Path, state: Any) -> State:
    """The state dict inside, with the predictor's blocks numbered as today."""
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not any(str(key).endswith(_ANCHOR) for key in state):
        keys = list(state)[:8] if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(f"{path}: no encoder of the M2D family inside ({_ANCHOR} is missing); found {keys}.")
    tensors = {
        str(key): torch.as_tensor(value)
        for key, value in state.items()
        if isinstance(value, Tensor) or str(key).endswith("norm_stats")
    }
    return {key.replace("decoder_blocks.layers.", "decoder_blocks."): value for key, value in tensors.items()}


def _sort_keys(path: Path, state: State) -> tuple[State, State, State, tuple[str, ...]]:
    """Splits a state dict into encoder, extras, head and ignored keys, without their common prefix."""
    anchors = [key for key in state if key.endswith(_ANCHOR)]
    if len(anchors) != 1:
        raise CheckpointError(f"{path}: holds {len(anchors)} encoders ({', '.join(anchors)}); expected one.")
    prefix = anchors[0].removesuffix(_ANCHOR)
    encoder: State = {}
    extras: State = {}
    head: State = {}
    ignored, unexpected = [], []
    for key, value in state.items():
        inner = key.removeprefix(prefix)
        if key.endswith("norm_stats"):
            extras["norm_stats"] = value
        elif match := _HEAD_KEY.match(key):
            head[key.removeprefix(match[0]).removeprefix("mlp.0.")] = value.float()
        elif not key.startswith(prefix):
            ignored.append(key)
        elif _ENCODER_KEY.match(inner):
            encoder[inner] = value.float()
        elif _EXTRA_KEY.match(inner):
            extras[inner] = value
        else:
            unexpected.append(inner)
    head.pop("num_batches_tracked", None)
    if unexpected:
        raise CheckpointError(f"{path}: unexpected keys that no model of the family has: {_listing(unexpected)}.")
    return encoder, extras, head, tuple(ignored)


def _rename_keys_of_2022(encoder: State) -> None:
    """Gives an encoder of MSM-MAE's own repository today's keys: one bias for q, k and v, an empty class token."""
    for key in [key for key in encoder if key.endswith("attn.q_bias")]:
        query, value = encoder.pop(key), encoder.pop(key.replace("q_bias", "v_bias"))
        encoder[key.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
        encoder.setdefault("cls_token", torch.empty(1, 0, len(query)))


def _shape(path: Path, encoder: State, stated: EncoderConfig | None, patch_size: Any) -> ViTConfig:
    """Shape of the encoder from its tensors; a name that states another patch or input size is an error."""
    projection = encoder[_ANCHOR]
    width, channels, *kernel = projection.shape
    patch = (kernel[0], kernel[1])
    if patch_size is not None and tuple(patch_size) != patch:
        raise CheckpointError(f"{path}: patch_size={tuple(patch_size)} was asked for, its {_ANCHOR} says {patch}.")
    if stated and patch_size is None and stated.vit.patch_size != patch:
        raise CheckpointError(
            f"{path}: its name says patches of {stated.vit.patch_size[0]}×{stated.vit.patch_size[1]}, its {_ANCHOR} "
            f"{list(projection.shape)} says {patch[0]}×{patch[1]}. Rename the folder or pass patch_size={patch}."
        )
    positions = encoder.get("pos_embed", torch.empty(0, 0))
    n_freq = N_MELS // patch[0]
    n_class_tokens = encoder.get("cls_token", torch.empty(1, 1)).shape[1]
    n_time, rest = divmod(positions.shape[1] - n_class_tokens, n_freq)
    if rest or n_time < 1:
        raise CheckpointError(
            f"{path}: its pos_embed {list(positions.shape)} does not hold {'a class token and ' * n_class_tokens}"
            f"whole columns of {n_freq} patches."
        )
    frames = n_time * patch[1]
    if stated and stated.vit.patch_size == patch:
        if stated.vit.grid_size[1] != n_time:
            raise CheckpointError(
                f"{path}: its name says {stated.vit.input_size[1]} frames ({stated.vit.grid_size[1]} patches in time), "
                f"its pos_embed {list(positions.shape)} says {n_time} patches. Rename the folder."
            )
        frames = stated.vit.input_size[1]
    depth = max((int(key.split(".")[1]) for key in encoder if key.startswith("blocks.")), default=-1) + 1
    if stated and "_vit_" in stated.name and (stated.vit.width, stated.vit.depth) != (width, depth):
        logger.warning(
            "%s: its name says width %d and depth %d, its tensors say %d and %d; the tensors count.",
            *(path, stated.vit.width, stated.vit.depth, width, depth),
        )
    return ViTConfig(
        width=width,
        depth=depth,
        patch_size=patch,
        input_size=(N_MELS, frames),
        channels=channels,
        class_token=n_class_tokens > 0,
    )


def _sample_rate(path: Path, stated: EncoderConfig | None) -> int:
    if stated:
        return stated.sample_rate
    logger.warning("%s: no released name to tell the sample rate; 16000 Hz is assumed.", path)
    return 16000


def _norm_stats(path: Path, stored: Tensor | None) -> tuple[float, float]:
    if stored is None:
        logger.warning(
            "%s: no norm_stats inside; the default %s is used. load_encoder(…, norm_stats=(mean, std)) gives others.",
            *(path, list(DEFAULT_NORM_STATS)),
        )
        return DEFAULT_NORM_STATS
    mean, std = (round(x, 6) for x in stored.flatten().tolist())  # 6 digits: what a float32 holds
    return mean, std


def _features(path: Path, head: State, vit: ViTConfig) -> Literal["stacked", "flat"]:
    """Stacked, unless a fine-tuned head takes fewer inputs."""
    if not head:
        return "stacked"
    inputs = head["weight"].shape[1] if "weight" in head else None
    stacked = vit.width * vit.grid_size[0]
    if inputs not in (vit.width, stacked):
        raise CheckpointError(
            f"{path}: its head takes {inputs} features; this encoder gives {vit.width} (flat) or {stacked} (stacked)."
        )
    return "stacked" if inputs == stacked else "flat"


def _check_encoder(path: Path, encoder: State, config: EncoderConfig) -> None:
    """Every key of the encoder with its shape, none missing, none beside, all values finite."""
    with torch.device("meta"):
        expected = M2DEncoder(config).vit.state_dict()
    missing = [key for key in expected if key not in encoder]
    unexpected = [key for key in encoder if key not in expected]
    shapes = [
        f"{key} {list(encoder[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in encoder and encoder[key].shape != tensor.shape
    ]
    broken = [key for key, tensor in encoder.items() if not bool(tensor.isfinite().all())]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "with NaN or infinity": broken}
    if any(faults.values()):
        lists = "; ".join(f"{what}: {_listing(keys)}" for what, keys in faults.items() if keys)
        raise CheckpointError(f"{path}: not the encoder its tensors describe. Keys {lists}.")


def _listing(keys: list[str], limit: int = 20) -> str:
    more = f" … and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
