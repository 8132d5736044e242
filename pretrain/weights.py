"""A method's weights ↔ the released checkpoint format, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.checkpoint import Checkpoint
from m2d_bench.encoders.config import EncoderConfig
from m2d_bench.encoders.frontend import N_MELS
from m2d_bench.encoders.vit import SIZES, ViT, ViTConfig, fit_columns
from m2d_bench.errors import CheckpointError
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.settings import Storage, replacing

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


def load(method: MaskedModel, name: str, storage: Storage = Storage()) -> str:
    """Begins a method with the weights of a model: its encoder, and predictor and target where it has them.

    Positions of another length are cut or resized. Whatever else has another shape or is missing stays fresh; a target
    encoder that is missing is a copy of the online one.

    Args:
        method: With fresh weights.
        name: What the zoo takes; of images, a path.
        storage: Cache of released weights.

    Returns:
        What was loaded, resized, left fresh and left over, for people.

    Raises:
        UsageError: Unknown name.
        CheckpointError: The encoder is of another shape.
    """
    stored = _read(method.encoder.config, name, storage)
    expected = {released_key(key): (key, value) for key, value in method.state_dict().items()}
    online = {key: key.removeprefix("target_") for key in expected if key.startswith("target_") and key not in stored}
    copied = {key: stored[source] for key, source in online.items() if source in stored}
    weights, resized = {**stored, **copied}, []
    for key in [key for key in expected if key.endswith("pos_embed") and key in weights]:
        fitted = _fitted(weights[key], expected[key][1], method.encoder.config.grid_size)
        if fitted.shape != weights[key].shape:
            resized.append(key)
        weights[key] = fitted
    fits = {key: value for key, value in weights.items() if key in expected and value.shape == expected[key][1].shape}
    _check_fits(name, weights, method.encoder)
    method.load_state_dict({expected[key][0]: value for key, value in fits.items()}, strict=False)
    parts = {
        "loaded": [key for key in fits if key not in resized and key not in copied],
        "cut or resized": resized,
        "copied from the encoder": list(copied),
        "fresh": [key for key in expected if key not in fits],
        "left over": [key for key in stored if key not in fits],
    }
    said = [
        f"{what}: {', '.join(dict.fromkeys(key.split('.')[0] for key in keys))}" for what, keys in parts.items() if keys
    ]
    return f"{name}: {'; '.join(said)}."


def encoder_of(name: str, vit: ViTConfig, storage: Storage = Storage()) -> ViT:
    """The encoder of a model in a recipe's shape, its positions cut or resized. Args and Raises: as for `load`."""
    encoder = ViT(vit)
    stored = _read(vit, name, storage)
    if "pos_embed" in stored:
        stored["pos_embed"] = _fitted(stored["pos_embed"], encoder.pos_embed, vit.grid_size)
    _check_fits(name, stored, encoder)
    encoder.load_state_dict({key: stored[key] for key in encoder.state_dict()})
    return encoder


def _check_fits(name: str, stored: Mapping[str, Tensor], encoder: ViT) -> None:
    """Raises a CheckpointError where an encoder's weights are missing or of another shape."""
    own = encoder.state_dict()
    if other := [key for key, value in own.items() if key not in stored or stored[key].shape != value.shape]:
        shapes = ", ".join(f"{key} {list(stored[key].shape) if key in stored else 'missing'}" for key in other[:5])
        raise CheckpointError(
            f"{name}: its encoder does not fit the recipe's: {shapes}. Choose size, patch_size and channels as it has "
            "them, with --set."
        )


def _read(vit: ViTConfig, name: str, storage: Storage) -> dict[str, Tensor]:
    """A model's tensors under the released names."""
    if vit.channels == 1:
        stored = zoo.read(name, storage=storage)
        return {**stored.encoder, **stored.extras}
    weights = dict(checkpoint.read_state(name))  # images have no front end, which the zoo's models have
    weights.pop("norm_stats", None)
    return weights


def _fitted(stored: Tensor, own: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Positions for another number of patch columns, as the encoder takes them: the first ones, or resized."""
    n_freq, n_time = grid_size
    columns, rest = divmod(stored.shape[1] - 1, n_freq)
    if stored.shape == own.shape or rest or not columns or stored.shape[2] != own.shape[2]:
        return stored
    grid = fit_columns(stored[0, 1:].unflatten(0, (n_freq, columns)), n_time)
    return torch.cat([stored[:, :1], grid.flatten(0, 1)[None]], dim=1)


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
