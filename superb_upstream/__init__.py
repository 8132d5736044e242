"""SUPERB (s3prl) upstreams over the core's encoders.

Importing this registers them in `s3prl.hub`, where s3prl is installed.
"""

from importlib.util import find_spec

from m2d_bench.superb_upstream.registration import ENTRIES, register
from m2d_bench.superb_upstream.upstream import CalcNorm, Statistics, Upstream, load

if find_spec("s3prl") is not None:
    register()

__all__ = ["ENTRIES", "CalcNorm", "Statistics", "Upstream", "load", "register"]
