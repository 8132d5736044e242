"""What tells encoders apart: a digest of weights, settings, code and attributes."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest_of(settings: Any, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over settings that JSON can hold and weights as float32, 16 hexadecimal digits."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, tensor in sorted(weights.items()):
        sha.update(key.encode())
        sha.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return sha.hexdigest()[:16]


def parts_of(module: nn.Module) -> list[Any]:
    """What tells a module from others of the same weights, in lists of strings.

    Returns:
        Source of the classes in its tree that are neither torch's nor m2d-bench's, where Python has it; of every module
        in the tree, class, plain attributes, and buffers that state_dict leaves out.
    """
    classes = {kind for part in module.modules() for kind in type(part).__mro__}
    state, private = module.state_dict().keys(), vars(nn.Module()).keys()
    return [
        sorted(_code(kind) for kind in classes),
        [
            [
                name,
                _named(type(part)),
                [[key, _plain(value)] for key, value in vars(part).items() if key not in private],
            ]
            for name, part in module.named_modules()
        ],
        [[name, _plain(buffer)] for name, buffer in module.named_buffers() if name not in state],
    ]


def _plain(value: Any) -> Any:
    """A value in lists of strings; of what is no number, string, array, function or collection of them, the class."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(item)) for item in value)
    if isinstance(value, Tensor) and not value.is_meta:
        flat = value.detach().cpu().to_dense().contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().tobytes()
        return [f"{value.dtype} {list(value.shape)}", hashlib.sha256(content).hexdigest()]
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            return _plain(value.tolist())
        return [f"{value.dtype} {list(value.shape)}", hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, type) or inspect.isroutine(value):
        return _code(getattr(value, "__func__", value))
    if value is None or isinstance(value, str | bytes | bool | int | float | complex | torch.dtype | Path | Enum):
        return repr(value)
    return _named(type(value))


@lru_cache(maxsize=256)
def _code(value: Any) -> list[str]:
    """Name of a class or function, and its source unless it is torch's or m2d-bench's."""
    try:
        library = str(value.__module__).partition(".")[0] in ("torch", "m2d_bench")
        return [_named(value), "" if library else inspect.getsource(value)]
    except (OSError, TypeError):  # compiled, or typed into a prompt
        return [_named(value), ""]


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
