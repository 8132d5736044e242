"""m2d-bench: evaluate, fine-tune and pre-train audio encoders of the Masked Modeling Duo family.

`load_encoder` gives an encoder by name, `linear` evaluates one, `finetune` trains one on tasks; `M2DEncoder` saves and
loads its own. They and torch are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m2d_bench.registry import resolve

if TYPE_CHECKING:
    from m2d_bench import hear_api as hear_api
    from m2d_bench import results as results
    from m2d_bench.encoders import zoo as zoo
    from m2d_bench.encoders.m2d import M2DEncoder as M2DEncoder
    from m2d_bench.encoders.zoo import load as load_encoder
    from m2d_bench.evaluation.linear import linear as linear
    from m2d_bench.evaluation.settings import LinearSettings as LinearSettings
    from m2d_bench.finetuning.run import finetune as finetune
    from m2d_bench.tasks import dataset as dataset

__version__ = "0.1.0"
__all__ = [
    "LinearSettings",
    "M2DEncoder",
    "dataset",
    "finetune",
    "hear_api",
    "linear",
    "load_encoder",
    "results",
    "zoo",
]

_LAZY = {
    "LinearSettings": "m2d_bench.evaluation.settings:LinearSettings",
    "M2DEncoder": "m2d_bench.encoders.m2d:M2DEncoder",
    "dataset": "m2d_bench.tasks.dataset",
    "finetune": "m2d_bench.finetuning.run:finetune",
    "hear_api": "m2d_bench.hear_api",
    "linear": "m2d_bench.evaluation.linear:linear",
    "load_encoder": "m2d_bench.encoders.zoo:load",
    "results": "m2d_bench.results",
    "zoo": "m2d_bench.encoders.zoo",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return resolve(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
