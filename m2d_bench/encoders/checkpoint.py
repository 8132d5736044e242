"""Checkpoint files ↔ encoders: every released format, read strictly, and written back.

Source: the formats are those of the releases of github.com/nttcslab/m2d and of EVAR's fine-tuning.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from m2d_bench.encoders import tensor_file
from m2d_bench.encoders.config import EncoderConfig
from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.frontend import DEFAULT_NORM_STATS, N_MELS
from m2d_bench.encoders.state_dict import ANCHOR, HEAD, State, rename_keys_of_2022, sort_keys, unwrap
from m2d_bench.encoders.tensor_file import SUFFIXES
from m2d_bench.encoders.vit import SIZES, ViT, ViTConfig
from m2d_bench.errors import CheckpointError, UsageError, brief
from m2d_bench.registry import listing, unknown
from m2d_bench.settings import replacing
from m2d_bench.values import Checked, explain

logger = logging.getLogger(__name__)

CONFIGURATION = "m2d_bench"
"""Key of configuration and labels in a file's metadata: those of .safetensors, or a module's in a saved state dict."""
HEAD_LAYERS = "head_layers"
"""Key of the layers that a head was trained on, where they are not the last alone."""
_LABELS = "labels"
_SHA256 = "sha256"
_NO_WEIGHTS = re.compile(r"\.|optimizer|scheduler|scaler|sampler|rng_state|training_args")
"""Hidden files, and what accelerate and the Trainer of transformers write beside the weights."""
_NAME = re.compile(
    r"(?:(?P<family>m2d_clap|m2d_as|m2d_s|m2d_x|m2d_d2v|m2d|msm_mae)_vit_(?P<size>tiny|small|base|large)-)?"
    r"(?P<freq>\d+)x(?P<time>\d+)p(?P<patch_freq>\d+)x(?P<patch_time>\d+)(?:p(?P<khz>16|32)k)?"
)


@dataclass(frozen=True, kw_only=True)
class Labels(Checked):
    """What a head was trained to tell apart.

    Args:
        classes: Names of its outputs.
        multilabel: Whether a clip may have several of them.
        clip_seconds: Duration of the clips; shorter ones were zero-padded to it.
    """

    classes: tuple[str, ...]
    multilabel: bool
    clip_seconds: Annotated[float, Field(ge=0, le=86400)]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds.

    Args:
        config: Configuration of the encoder, read from the tensors and cross-checked with the name.
        encoder: The encoder's tensors, float32, under the names of `vit.ViT`.
        extras: Everything else the family's checkpoints may carry (decoder, target encoder, projections of CLAP, …).
        head: Head of a fine-tuned model: `running_mean`, `running_var`, `weight`, `bias`; empty if there is none. Other
            tensors of a head of another kind stand under their keys.
        labels: What the head's outputs stand for; None where the file does not say.
        ignored: Keys that belong to none of these and were left out (buffers of the tool that wrote the file, the
            text encoder of CLAP).
    """

    config: EncoderConfig
    encoder: State
    extras: State = field(default_factory=dict)
    head: State = field(default_factory=dict)
    labels: Labels | None = None
    ignored: tuple[str, ...] = ()

    def half(self) -> Checkpoint:
        """The same with weights rounded to float16, for a file of half the size; `read` gives float32 again.

        Raises:
            CheckpointError: A weight is too large for it.
        """
        encoder, extras, head = (
            {key: _half(key, tensor) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
            for state in (self.encoder, self.extras, self.head)
        )
        return replace(self, encoder=encoder, extras=extras, head=head)


def _half(key: str, tensor: Tensor) -> Tensor:
    rounded = tensor.half()
    if rounded.isinf().any():
        raise CheckpointError(f"{key}: reaches {tensor.abs().max():.3g}, float16 only 65504. Keep float32.")
    return rounded


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
        path: `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors` file, or a folder that holds exactly one.
        changes: Fields of EncoderConfig to set (`features`, `encoding`, `dur_frames`, `norm_stats`, `sample_rate`,
            `name`); and `patch_size`, to accept the tensors' patch size when the folder's name states another.

    Raises:
        CheckpointError: The file cannot be read, is damaged, holds code, lacks encoder keys, has unexpected ones, has
            values that are no finite numbers, or contradicts its name.
        UsageError: A change names no setting, or an impossible one.
    """
    path = _file(Path(path))
    with _malformed(path):
        stated = next((c for c in map(parse_name, (path.parent.name, path.stem)) if c), None)
        found = _interpret(path, stated, changes)
    return replace(found, config=change(found.config, changes))


def read_state(path: str | os.PathLike[str]) -> State:
    """The tensors of a checkpoint file as they are; for what has no front end, such as encoders of images.

    Raises:
        CheckpointError: The file cannot be read, holds code, or no encoder of the family.
    """
    path = _file(Path(path))
    with _malformed(path):
        safe = path.suffix.lower() == ".safetensors"
        state = unwrap(path, tensor_file.read_safetensors(path)[0] if safe else tensor_file.read_pickle(path))
        tensor_file.check(path, state)
        return state


def files_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, without hidden files such as the `._` twins of macOS, and states of a training."""
    found = (p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and not _NO_WEIGHTS.match(p.name))
    return sorted(p for p in found if p.is_file())


@contextmanager
def _malformed(path: Path) -> Iterator[None]:
    """What goes wrong on the way from tensors to an encoder is the file's fault."""
    try:
        yield
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = brief(error)
        raise CheckpointError(f"{path}: malformed, no checkpoint of the family looks like this: {reason}.") from error


def _interpret(path: Path, stated: EncoderConfig | None, changes: dict[str, Any]) -> Checkpoint:
    name = path.parent.name if parse_name(path.parent.name) else path.stem
    content: Any
    metadata: Mapping[str, Any]
    if path.suffix.lower() == ".safetensors":
        content, metadata = tensor_file.read_safetensors(path)
        config, written = _written_configuration(path, content, metadata)
    else:
        content = tensor_file.read_pickle(path)
        metadata = _module_metadata(content)
        config, written = _written_configuration(path, {}, metadata)
        config = config and replace(config, name=name)  # what it was fine-tuned from has that name
        written = written or (content.get(_LABELS) if isinstance(content, Mapping) else None)
    encoder, extras, head, ignored = sort_keys(path, unwrap(path, content))
    if "norm_stats" in changes:
        extras.pop("norm_stats", None)
    tensor_file.check(path, {**encoder, **extras, **{f"head.{key}": value for key, value in head.items()}})
    encoder, head = ({key: value.float() for key, value in state.items()} for state in (encoder, head))
    rename_keys_of_2022(encoder)
    norm_stats, patch_size = extras.pop("norm_stats", None), changes.pop("patch_size", None)
    if config is None:
        vit = _shape(path, encoder, stated, patch_size)
        config = EncoderConfig(
            name=name,
            vit=vit,
            sample_rate=_sample_rate(path, stated),
            norm_stats=_norm_stats(path, norm_stats) if "norm_stats" not in changes else DEFAULT_NORM_STATS,
            features=_features(path, head, vit),
        )
    if HEAD_LAYERS in metadata:
        logger.warning("%s: its head is on layers %s; it is left out.", path, metadata[HEAD_LAYERS])
        head = {}
    _check_shapes(path, encoder, head, config)
    return Checkpoint(
        config=config, encoder=encoder, extras=extras, head=head, labels=_labels(written), ignored=ignored
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
    places = {key: place for place, key in HEAD.items()}
    head = {f"module.head.{places.get(key, key)}": value for key, value in checkpoint.head.items()}  # as EVAR names it
    state = {**checkpoint.encoder, **checkpoint.extras, **head, "norm_stats": mean_std}
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: a checkpoint's suffix is one of {', '.join(SUFFIXES)}.")
    labels = {_LABELS: asdict(checkpoint.labels)} if checkpoint.labels else {}
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            configuration = configuration_text(checkpoint.config, checkpoint.labels)
            metadata = {CONFIGURATION: configuration, _SHA256: digest_of(configuration, state)}
            file.write(safetensors.torch.save({k: v.contiguous() for k, v in state.items()}, metadata))
        else:
            torch.save({"model": state, **labels}, file)


def configuration_text(config: EncoderConfig, labels: Labels | None) -> str:
    """Configuration and labels as JSON, for a file's metadata."""
    return json.dumps({**asdict(config), **({_LABELS: asdict(labels)} if labels else {})})


def with_input(checkpoint: Checkpoint, frames: int) -> Checkpoint:
    """A checkpoint for windows of another length: its positions resized to more columns, or the first of them.

    Args:
        checkpoint: What was read.
        frames: Frames of a window.
    """
    config = replace(checkpoint.config, vit=replace(checkpoint.config.vit, input_size=(N_MELS, frames)))
    vit = ViT(checkpoint.config.vit)
    vit.load_state_dict(checkpoint.encoder)
    with torch.no_grad():
        grid = vit.positions(config.vit.grid_size[1]).flatten(0, 1)
        positions = torch.cat([vit.pos_embed[:, : vit.n_class_tokens], grid[None]], dim=1)
    return replace(checkpoint, config=config, encoder={**checkpoint.encoder, "pos_embed": positions})


def _file(path: Path) -> Path:
    if path.is_dir():
        found = files_in(path)
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
    return Labels(**found)


def _module_metadata(content: Any) -> Mapping[str, Any]:
    """The metadata of the module that says its configuration, of a state dict that torch saved."""
    modules = getattr(content, "_metadata", {}).values()
    return next((metadata for metadata in modules if CONFIGURATION in metadata), {})


def _written_configuration(
    path: Path, state: State, metadata: Mapping[str, Any]
) -> tuple[EncoderConfig | None, dict[str, Any] | None]:
    """Configuration and labels as `save` writes them beside the tensors, which have to be the same as then."""
    if CONFIGURATION not in metadata:
        return None, None
    if _SHA256 in metadata and metadata[_SHA256] != digest_of(metadata[CONFIGURATION], state):
        raise CheckpointError(f"{path}: damaged, its checksum does not match. Get or make the file anew.")
    values = json.loads(metadata[CONFIGURATION])
    labels = values.pop(_LABELS, None)
    if beside := set(values) - {each.name for each in fields(EncoderConfig)}:
        raise CheckpointError(f"{path}: the configuration inside has unknown settings: {listing(sorted(beside))}.")
    try:
        return TypeAdapter(EncoderConfig).validate_python(values), labels
    except ValidationError as error:
        raise CheckpointError(f"{path}: the configuration inside is none: {explain(error)}") from error


def _shape(path: Path, encoder: State, stated: EncoderConfig | None, patch_size: Any) -> ViTConfig:
    """Shape of the encoder from its tensors; a name that states another patch or input size is an error."""
    projection = encoder[ANCHOR]
    shape = list(projection.shape)
    if len(shape) != 4 or 0 in shape or N_MELS % shape[2]:
        raise CheckpointError(
            f"{path}: its {ANCHOR} is {shape}; [width, channels, frequency, time] is expected, all above 0 and the "
            f"frequency a divisor of {N_MELS} mel bins."
        )
    width, channels, *kernel = shape
    patch = (kernel[0], kernel[1])
    if patch_size is not None and tuple(patch_size) != patch:
        raise CheckpointError(f"{path}: patch_size={tuple(patch_size)} was asked for, its {ANCHOR} says {patch}.")
    if stated and patch_size is None and stated.vit.patch_size != patch:
        raise CheckpointError(
            f"{path}: its name says patches of {stated.vit.patch_size[0]}×{stated.vit.patch_size[1]}, its {ANCHOR} "
            f"{shape} says {patch[0]}×{patch[1]}. Rename the folder or pass patch_size={patch}."
        )
    positions = encoder.get("pos_embed", torch.empty(0, 0))
    n_freq = N_MELS // patch[0]
    n_class_tokens = encoder.get("cls_token", torch.empty(1, 1)).shape[1]
    n_time, rest = divmod(positions.shape[1] - n_class_tokens, n_freq)
    if rest or n_time < 1:
        raise CheckpointError(
            f"{path}: its pos_embed {list(positions.shape)} does not hold {n_class_tokens} class tokens and "
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
    depth = _depth(encoder)
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
    mean, *std = (round(x, 6) for x in stored.flatten()[:3].tolist())  # 6 digits: what a float32 holds
    return (mean, *std)  # EncoderConfig refuses another number of them


def _features(path: Path, head: State, vit: ViTConfig) -> Literal["stacked", "flat"]:
    """Stacked, unless a fine-tuned head takes fewer inputs."""
    if "weight" not in head:
        return "stacked"
    inputs = head["weight"].shape[1]
    stacked = vit.width * vit.grid_size[0]
    if inputs not in (vit.width, stacked):
        raise CheckpointError(
            f"{path}: its head takes {inputs} features; this encoder gives {vit.width} (flat) or {stacked} (stacked)."
        )
    return "stacked" if inputs == stacked else "flat"


def _depth(encoder: State) -> int:
    """Number of blocks, whatever they are called; an encoder has at least one."""
    return max(1, len({key.split(".")[1] for key in encoder if key.startswith("blocks.")}))


def _check_shapes(path: Path, encoder: State, head: State, config: EncoderConfig) -> None:
    """Every key of the encoder with its shape, none missing, none beside, and the head fits together."""
    if config.vit.depth != (depth := _depth(encoder)):
        raise CheckpointError(f"{path}: its configuration says {config.vit.depth} blocks, it holds {depth}.")
    with torch.device("meta"):  # one block stands for all
        model = ViT(replace(config.vit, depth=1)).state_dict()
    expected = {
        key.replace("blocks.0.", f"blocks.{block}."): tensor.shape
        for key, tensor in model.items()
        for block in range(depth if key.startswith("blocks.") else 1)
    }
    if "weight" in head:
        n_classes, inputs = head["weight"].shape
        n_classes = max(1, n_classes)
        sizes = {"weight": (n_classes, inputs), "bias": (n_classes,)}
        sizes |= {"running_mean": (inputs,), "running_var": (inputs,)}
        expected |= {f"head.{key}": torch.Size(size) for key, size in sizes.items() if key in head}
    known = {f"head.{key}": tensor for key, tensor in head.items() if f"head.{key}" in expected}
    tensor_file.check_shapes(path, {**encoder, **known}, expected)
