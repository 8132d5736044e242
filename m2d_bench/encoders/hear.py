"""`hear:MODULE[@WEIGHTS]`: models under the HEAR 2021 common API.

Source: https://hearbenchmark.com/hear-api.html
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench.encoders.foreign import ForeignEncoder, code_of, content_of, explained, load_module
from m2d_bench.errors import UsageError

PREFIX = "hear:"
_FUNCTIONS = ("load_model", "get_scene_embeddings")
_ATTRIBUTES = ("sample_rate",)


class HearEncoder(nn.Module):
    """A model and the functions that embed with it.

    Args:
        module: Has the functions.
        model: What its `load_model` returned.
    """

    sample_rate: int

    def __init__(self, module: ModuleType, model: nn.Module) -> None:
        super().__init__()
        self._module, self.model = module, model
        for name in ("sample_rate", "scene_embedding_size", "timestamp_embedding_size"):
            if hasattr(model, name):
                setattr(self, name, int(getattr(model, name)))

    def scene_embeddings(self, waveform: Tensor) -> Any:
        """[B, S] → [B, D]."""
        return self._module.get_scene_embeddings(waveform, self.model)


class HearFrameEncoder(HearEncoder):
    """The same with timestamp embeddings."""

    def timestamp_embeddings(self, waveform: Tensor) -> Any:
        """[B, S] → [B, T, D], and [B, T] in ms; times [T] stand for every clip."""
        answer = self._module.get_timestamp_embeddings(waveform, self.model)
        if isinstance(answer, list | tuple) and len(answer) == 2 and getattr(answer[1], "ndim", 2) == 1:
            return answer[0], torch.as_tensor(answer[1]).expand(len(waveform), -1)
        return answer


def load(name: str) -> ForeignEncoder:
    """Loads a model under the HEAR common API.

    Args:
        name: `hear:MODULE` or `hear:path/to/file.py`, with `@WEIGHTS` for what its `load_model` takes.

    Raises:
        UsageError: No such module, an error of its code, or not the common API.
    """
    reference, _, weights = name.removeprefix(PREFIX).partition("@")
    module = load_module(reference)
    _check(name, module, _FUNCTIONS, "functions")
    weights = os.path.expanduser(weights)
    with explained(f"load_model of {name}", module.__file__):
        model = module.load_model(weights) if weights else module.load_model()
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name}: load_model gave a {type(model).__name__}; a torch.nn.Module is needed.")
    _check(name, model, _ATTRIBUTES, "attributes of the model")
    framed = hasattr(module, "get_timestamp_embeddings") and hasattr(model, "timestamp_embedding_size")
    with explained(f"{name}, numbers of the model", module.__file__):
        encoder = (HearFrameEncoder if framed else HearEncoder)(module, model)
    shown = f"{PREFIX}{Path(reference).name}" + (f"@{Path(weights).name}" if weights else "")
    code = code_of(module) + (content_of(weights) if weights else b"")
    return ForeignEncoder(encoder, shown, code, module.__file__)


def _check(name: str, holder: object, names: tuple[str, ...], kind: str) -> None:
    if missing := [each for each in names if not hasattr(holder, each)]:
        raise UsageError(
            f"{name}: lacks {', '.join(missing)}; needed {kind} of HEAR's common API are {', '.join(names)}."
        )
