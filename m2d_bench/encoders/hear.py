"""`hear:MODULE[@WEIGHTS]`: models under the HEAR 2021 common API.

Source: https://hearbenchmark.com/hear-api.html
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from m2d_bench.encoders.foreign import ForeignEncoder, code_of, explained, load_module
from m2d_bench.errors import UsageError

PREFIX = "hear:"
_FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
_ATTRIBUTES = ("sample_rate", "scene_embedding_size", "timestamp_embedding_size")


class HearEncoder(nn.Module):
    """A model and the functions that embed with it.

    Args:
        module: Has the functions.
        model: What its `load_model` returned.
    """

    def __init__(self, module: ModuleType, model: nn.Module) -> None:
        super().__init__()
        self._module, self.model = module, model
        self.sample_rate, self.scene_embedding_size, self.timestamp_embedding_size = (
            int(getattr(model, name)) for name in _ATTRIBUTES
        )

    def scene_embeddings(self, waveform: Tensor) -> Any:
        """[B, S] → [B, D]."""
        return self._module.get_scene_embeddings(waveform, self.model)

    def timestamp_embeddings(self, waveform: Tensor) -> Any:
        """[B, S] → [B, T, D], and [B, T] in ms."""
        return self._module.get_timestamp_embeddings(waveform, self.model)


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
    with explained(f"load_model of {name}", module.__file__):
        model = module.load_model(os.path.expanduser(weights)) if weights else module.load_model()
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name}: load_model gave a {type(model).__name__}; a torch.nn.Module is needed.")
    _check(name, model, _ATTRIBUTES, "attributes of the model")
    shown = f"{PREFIX}{Path(reference).name}" + (f"@{Path(weights).name}" if weights else "")
    return ForeignEncoder(HearEncoder(module, model), shown, code_of(module), module.__file__)


def _check(name: str, holder: object, names: tuple[str, ...], kind: str) -> None:
    if missing := [each for each in names if not hasattr(holder, each)]:
        raise UsageError(f"{name}: lacks {', '.join(missing)}; the {kind} of HEAR's common API are {', '.join(names)}.")
