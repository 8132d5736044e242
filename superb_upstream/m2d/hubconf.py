"""Entries of s3prl's hub in its convention: every public function is a name of -u.

All take -k as `ckpt` (a name, a path or an address of weights), -g as `model_config`, -r as `refresh`, and settings of
the encoder; see `m2d_bench.superb_upstream.upstream.load`. They import m2d-bench when they are called: a hub with them
loads without it, on any Python that s3prl supports, for which some annotations are text.
"""

import typing as _typing

if _typing.TYPE_CHECKING:
    from m2d_bench.superb_upstream.upstream import CalcNorm as _CalcNorm
    from m2d_bench.superb_upstream.upstream import Upstream as _Upstream


def m2d_bench(ckpt: "str | None" = None, model_config: "str | None" = None, **settings: _typing.Any) -> "_Upstream":
    """Any encoder; without -k the default model."""
    return _load("", ckpt, model_config, settings)


def m2d(ckpt: "str | None" = None, model_config: "str | None" = None, **settings: _typing.Any) -> "_Upstream":
    """M2D and M2D-X."""
    return _load("m2d", ckpt, model_config, settings)


def m2d_s(ckpt: "str | None" = None, model_config: "str | None" = None, **settings: _typing.Any) -> "_Upstream":
    """M2D-S, M2D for speech."""
    return _load("m2d_s", ckpt, model_config, settings)


def m2d_as(ckpt: "str | None" = None, model_config: "str | None" = None, **settings: _typing.Any) -> "_Upstream":
    """M2D-AS, M2D with labels of AudioSet."""
    return _load("m2d_as", ckpt, model_config, settings)


def msm_mae(ckpt: "str | None" = None, model_config: "str | None" = None, **settings: _typing.Any) -> "_Upstream":
    """MSM-MAE."""
    return _load("msm_mae", ckpt, model_config, settings)


def m2d_calcnorm(**ignored: _typing.Any) -> "_CalcNorm":
    """Measures mean and standard deviation of what passes through it."""
    from m2d_bench.superb_upstream.upstream import CalcNorm

    return CalcNorm()


def _load(
    variant: str, ckpt: "str | None", model_config: "str | None", settings: "dict[str, _typing.Any]"
) -> "_Upstream":
    from m2d_bench.superb_upstream.upstream import load

    return load(variant, ckpt, model_config, **settings)


m2d_bench_local = m2d_bench_url = m2d_bench_custom = m2d_bench
m2d_local = m2d_url = m2d_custom = m2d
m2d_s_local = m2d_s_url = m2d_s_custom = m2d_s
m2d_as_local = m2d_as_url = m2d_as_custom = m2d_as
msm_mae_local = msm_mae_url = msm_mae_custom = msm_mae
