"""The digest of an encoder tells weights, settings, code and attributes apart."""

import sys
from dataclasses import dataclass
from enum import Enum
from importlib import import_module, invalidate_caches

import numpy as np
import pytest
import torch

from m2d_bench.encoders.protocol import wrap
from tests.encoders.test_protocol import Statistics


class Setting(Statistics):
    """An encoder whose attribute is outside its weights, in itself or in a part of it."""

    def __init__(self, value, holder=None):
        super().__init__()
        self.part = torch.nn.Sequential(Statistics(), torch.nn.Identity())
        (self.part[0] if holder == "part" else self.part[1] if holder == "torch's" else self).value = value


class Size(Enum):
    SMALL, LARGE = 1, 2


@dataclass
class Options:
    low: int = 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 0),
        (1, True),
        (None, "None"),
        (0.1, 0.2),
        ([1, (2, {"a": 3})], [1, (2, {"a": 4})]),
        ({1, 2}, {1, 3}),
        (np.arange(5000.0), np.arange(5000.0) * (np.arange(5000) != 2500)),
        (np.float32(1), np.float32(2)),
        (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
        ([torch.zeros(3)], [torch.ones(3)]),
        (torch.tensor(2**40), torch.tensor(2**40 + 1)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)),
        (Size.SMALL, Size.LARGE),
        (torch.relu, torch.tanh),
        (np.mean, np.amax),
        (Options(1), Options(2)),
        (torch.nn.ReLU(), torch.nn.GELU()),
        (torch.nn.Conv1d(1, 1, 4, stride=2), torch.nn.Conv1d(1, 1, 4, stride=4)),
    ],
)
def test_the_digest_tells_attributes_apart_that_are_no_weights(one, other):
    for value in (one, other):
        for parameter in value.parameters() if isinstance(value, torch.nn.Module) else ():
            parameter.data.fill_(1)
    for holder in (None, "part", "torch's"):
        assert wrap(Setting(one, holder)).digest == wrap(Setting(one, holder)).digest
        assert wrap(Setting(one, holder)).digest != wrap(Setting(other, holder)).digest


def test_the_digest_tells_buffers_apart_that_are_not_saved():
    def buffered(value):
        encoder = Statistics()
        encoder.register_buffer("window", torch.full((3,), value), persistent=False)
        return wrap(encoder).digest

    assert buffered(1.0) == buffered(1.0) != buffered(2.0)


CODE = (
    "from tests.encoders.test_protocol import Statistics\n\n\nclass {}:\n    def of(self, x):\n        return x + 1\n"
)


@pytest.mark.parametrize("edited", ["whole", "base", "part"])
def test_the_digest_tells_edited_classes_apart(edited, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "".join(CODE.format(name) for name in ("Base(Statistics)", "Whole(Base)", "Part(Statistics)"))

    def digest(code):
        (tmp_path / "edited.py").write_text(code)
        sys.modules.pop("edited", None)
        invalidate_caches()
        module = import_module("edited")
        encoder = module.Whole()
        encoder.part = module.Part()
        return wrap(encoder).digest

    at = ["base", "whole", "part"].index(edited)
    lines = code.split("+ 1")
    changed = "+ 1".join(lines[: at + 1]) + "+ 21" + "+ 1".join(lines[at + 1 :])
    try:
        assert digest(code) == digest(code) != digest(changed)
    finally:
        sys.modules.pop("edited", None)
