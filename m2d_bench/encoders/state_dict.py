"""State dicts as training tools write them → the family's own keys: encoder, extras, head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2d_bench.encoders.tensor_file import listing
from m2d_bench.errors import CheckpointError

State = dict[str, Tensor]

ANCHOR = "patch_embed.proj.weight"
"""The key that every encoder of the family has; what stands before it stands before all of its keys."""
_HOLDERS = ("model", "state_dict", "model_state_dict")
"""Where training tools keep the weights; the first of these counts where several hold an encoder."""
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
    """The state dict inside, with the predictor's blocks numbered as today."""
    states = _states(content)
    chosen = next((states[holder] for holder in ("", *_HOLDERS) if holder in states), None)
    if chosen is None and len(states) == 1:
        chosen = next(iter(states.values()))
    if chosen is None:
        keys = (
            (listing(list(map(str, content))) or "nothing") if isinstance(content, Mapping) else type(content).__name__
        )
        fault = f"several ({listing(list(states))}); save the one you mean alone" if states else f"none; found {keys}"
        raise CheckpointError(f"{path}: one encoder of the M2D family is expected (…{ANCHOR}), it holds {fault}.")
    return {
        str(key).replace("decoder_blocks.layers.", "decoder_blocks."): (
            value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)
        )
        for key, value in chosen.items()
        if isinstance(value, Tensor) or str(key).endswith("norm_stats")
    }


def _states(content: Any, levels: int = 2) -> dict[str, Mapping[Any, Any]]:
    """The state dicts that hold an encoder, by the keys that lead to them."""
    if not isinstance(content, Mapping):
        return {}
    if any(_plain(str(key)).endswith(ANCHOR) for key in content):
        return {"": content}
    return {
        f"{key}.{inner}".removesuffix("."): state
        for key, value in (content.items() if levels else ())
        for inner, state in _states(value, levels - 1).items()
    }


def _plain(key: str) -> str:
    return _WRAPPER.sub("", key)


def sort_keys(path: Path, state: State) -> tuple[State, State, State, tuple[str, ...]]:
    """Splits a state dict into encoder, extras, head and ignored keys, without their common prefix."""
    keys = {_plain(key): key for key in state}
    anchors = [key for key in keys if key.endswith(ANCHOR)]
    if len(anchors) != 1 or len(keys) != len(state):
        twice = [key for key in state if key not in keys.values()]
        raise CheckpointError(
            f"{path}: holds {len(anchors)} encoders ({listing(anchors)}), {len(twice)} keys twice ({listing(twice)}); "
            "expected one, and each key once. Save the one you mean alone."
        )
    prefix = anchors[0].removesuffix(ANCHOR)
    encoder: State = {}
    extras: State = {}
    head: State = {}
    ignored, unexpected = [], []
    for plain, key in keys.items():
        inner, value = plain.removeprefix(prefix), state[key]
        if plain.endswith("norm_stats"):
            extras["norm_stats"] = value
        elif match := _HEAD_KEY.match(plain):
            head[HEAD.get(match[1], match[1])] = value
        elif not plain.startswith(prefix) or inner.startswith("text_encoder."):
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
