"""A method's weights ↔ the released checkpoint format, key by key."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.checkpoint import Checkpoint
from m2d_bench.encoders.frontend import N_MELS
from m2d_bench.encoders.m2d import EncoderConfig
from m2d_bench.encoders.vit import SIZES, ViTConfig
from m2d_bench.errors import CheckpointError
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.settings import replacing

_PREFIXES = {"encoder.": "", "predictor.mask_token": "mask_token", "predictor.": "decoder_"}


def released_key(key: str) -> str:
    """A released checkpoint's name of a method's parameter."""
    for ours, theirs in _PREFIXES.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def released_state(method: MaskedModel) -> dict[str, Tensor]:
    """The method's tensors under the released names, on the CPU."""
    return {released_key(key): value.detach().cpu() for key, value in method.state_dict().items()}


def save(method: MaskedModel, path: Path, sample_rate: int, norm_stats: tuple[float, float]) -> None:
    """Writes a checkpoint that the zoo and the reference tools read; the folder is named as released ones are.

    Args:
        method: The method.
        path: …/NAME/checkpoint-EPOCH.pth.
        sample_rate: Hz of the model.
        norm_stats: Mean and standard deviation of its log-mel spectrograms.
    """
    state = released_state(method)
    encoder = {key: state.pop(key) for key in method.encoder.state_dict()}
    vit = method.encoder.config
    if vit.channels == 1 and vit.input_size[0] == N_MELS:
        config = EncoderConfig(name=path.parent.name, vit=vit, sample_rate=sample_rate, norm_stats=norm_stats)
        checkpoint.save(Checkpoint(config=config, encoder=encoder, extras=state), path)
    else:  # images have no front end, hence no encoder configuration
        with replacing(path) as file:
            torch.save({"model": {**encoder, **state, "norm_stats": torch.tensor(norm_stats)}}, file)


def load(method: MaskedModel, path: Path) -> None:
    """Reads a released checkpoint into a method: encoder, predictor and target.

    A checkpoint without predictor or target (encoder-only) is refused: it cannot be trained on as it was.

    Raises:
        CheckpointError: Keys are missing, left over or of another shape.
    """
    if method.encoder.config.channels == 1:
        stored = checkpoint.read(path)
        weights = {**stored.encoder, **stored.extras}
    else:
        weights = checkpoint.read_state(path)
        weights.pop("norm_stats", None)
    expected = {released_key(key): key for key in method.state_dict()}
    missing = sorted(set(expected) - set(weights))
    beside = sorted(set(weights) - set(expected))
    if missing or beside:
        raise CheckpointError(
            f"{path}: not a checkpoint of this method. Keys missing: {', '.join(missing) or 'none'}; left over: "
            f"{', '.join(beside) or 'none'}. Choose the method and sizes it was made with."
        )
    try:
        method.load_state_dict({expected[key]: value for key, value in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from error


def name_of(family: str, vit: ViTConfig, sample_rate: int, tag: str) -> str:
    """A checkpoint folder's name as released ones are: FAMILY_vit_SIZE-80xFRAMESpPFxPT[p32k][-TAG].

    Raises:
        CheckpointError: The width and depth are none of the named sizes.
    """
    size = next((size for size, shape in SIZES.items() if shape == (vit.width, vit.depth)), None)
    if size is None:
        raise CheckpointError(
            f"Width {vit.width} and depth {vit.depth} have no name: released names know {', '.join(SIZES)}."
        )
    (freq, time), (patch_freq, patch_time) = vit.input_size, vit.patch_size
    rate = "p32k" if sample_rate == 32000 else ""
    return f"{family}_vit_{size}-{freq}x{time}p{patch_freq}x{patch_time}{rate}" + (f"-{tag}" if tag else "")
