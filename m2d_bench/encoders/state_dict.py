"""State dicts as training tools write them → the family's own keys: encoder, extras, head."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2d_bench.errors import CheckpointError
from m2d_bench.registry import listing

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

ANCHOR = "patch_embed.proj.weight"
"""The key that every encoder of the family has; what stands before it stands before all of its keys."""
_PREFERRED = ("", "model", "state_dict", "model_state_dict", "teacher", "ema_model")
"""Of several encoders in a file the first of these counts: the one that the tool which wrote it evaluates.

DINO's is the teacher, ema-pytorch's the ema_model.
"""
_WRAPPER = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What parallel, compiled and checkpointed modules put before a part of a key."""
_ENCODER_KEY = re.compile(r"(cls_token|pos_embed|patch_embed\.|blocks\.|norm\.)")
_EXTRA_KEY = re.compile(
    r"(norm_stats$|mask_token$|decoder_|target_|offline_predictor\.|audio_proj\.|text_proj\.|logit_scale$|head\.)"
)
HEAD = {
    "norm.running_mean": "running_mean",
    "norm.running_var": "running_var",
    "mlp.mlp.0.weight": "weight",
    "mlp.mlp.0.bias": "bias",
}
"""A fine-tuned head's keys after `head.`, and what they are called here."""
_HEAD_KEY = re.compile(r".*\bhead\.((?:norm|mlp)\..+)")


def unwrap(path: Path, content: Any) -> State:
    """The state dict inside, without those of other encoders, with the predictor's blocks numbered as today."""
    encoders = _encoders(content)
    names = [name.split(".") for name in encoders]
    common = len(os.path.commonprefix(names))  # noqa: RUF071 (of lists: whole names)
    distinct = ["".join(name[common : common + 1]) for name in names]
    chosen = next((name for name in _PREFERRED if distinct.count(name) == 1), None)
    listed = listing([name or "the outermost" for name in encoders])
    if chosen is None:
        keys = (
            (listing(list(map(str, content))) or "nothing") if isinstance(content, Mapping) else type(content).__name__
        )
        fault = f"several ({listed}); save the one you mean alone" if encoders else f"none; found {keys}"
        raise CheckpointError(f"{path}: one encoder of the M2D family is expected (…{ANCHOR}), it holds {fault}.")
    name = list(encoders)[distinct.index(chosen)]
    state, prefix = encoders[name]
    if len(encoders) > 1:
        logger.warning(
            "%s: holds several encoders (%s); %s is read. To use another, save it alone.",
            *(path, listed, listing([name]) or "the outermost"),
        )
    others = tuple(other for beside, other in encoders.values() if beside is state and other != prefix)
    return {
        str(key).replace("decoder_blocks.layers.", "decoder_blocks."): (
            value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)
        )
        for key, value in state.items()
        if (isinstance(value, Tensor) or str(key).endswith("norm_stats")) and not str(key).startswith(others)
    }


def _encoders(content: Any, levels: int = 2) -> dict[str, tuple[Mapping[Any, Any], str]]:
    """Each encoder's state dict and prefix in it, by the names that lead to it."""
    if not isinstance(content, Mapping):
        return {}
    if prefixes := _prefixes(content):
        return {_plain(prefix).rstrip("."): (content, prefix) for prefix in prefixes}
    return {
        f"{key}.{inner}".rstrip("."): encoder
        for key, value in (content.items() if levels else ())
        for inner, encoder in _encoders(value, levels - 1).items()
    }


def _prefixes(state: Mapping[Any, Any]) -> list[str]:
    """What stands before the keys of each encoder of a state dict, wrappers included."""
    return [key[: key.rindex("patch_embed")] for key in map(str, state) if _plain(key).endswith(ANCHOR)]


def _plain(key: str) -> str:
    return _WRAPPER.sub("", key)


def sort_keys(path: Path, state: State) -> tuple[State, State, State, tuple[str, ...]]:
    """Splits a state dict into encoder, extras, head and ignored keys, without their common prefix."""
    keys = {_plain(key): key for key in state}
    if len(keys) != len(state):
        twice = [key for key in state if key not in keys.values()]
        raise CheckpointError(
            f"{path}: holds {len(twice)} keys twice ({listing(twice)}); each is expected once. Save the one you mean."
        )
    (prefix,) = _prefixes(state)
    encoder: State = {}
    extras: State = {}
    head: State = {}
    ignored, unexpected = [], []
    for plain, key in keys.items():
        inner, value = _plain(key.removeprefix(prefix)), state[key]
        if plain.endswith("norm_stats"):
            extras["norm_stats"] = value
        elif match := _HEAD_KEY.match(plain):
            head[HEAD.get(match[1], match[1])] = value
        elif not key.startswith(prefix) or inner.startswith("text_encoder."):
            ignored.append(key)
        elif _ENCODER_KEY.match(inner):
            encoder[inner] = value
        elif _EXTRA_KEY.match(inner):
            extras[inner] = value
        else:
            unexpected.append(inner)
    head.pop("norm.num_batches_tracked", None)
    if unexpected:
        raise CheckpointError(f"{path}: unexpected keys that no model of the family has: {listing(unexpected)}.")
    return encoder, extras, head, tuple(ignored)


def rename_keys_of_2022(encoder: State) -> None:
    """Gives an encoder of MSM-MAE's own repository today's keys: one bias for q, k and v, an empty class token."""
    for key in [key for key in encoder if key.endswith("attn.q_bias")]:
        query, value = encoder.pop(key), encoder.pop(key.replace("q_bias", "v_bias"))
        encoder[key.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
        encoder.setdefault("cls_token", torch.empty(1, 0, len(query)))
