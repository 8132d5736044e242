"""X-ARES over the core's encoders: `python -m xares.run m2d_bench.xares_adapter tasks/esc50_task.py`.

X-ARES takes the one name here that ends with Encoder; the environment's M2D_BENCH_MODEL names the model.
"""

from m2d_bench.xares_adapter.encoder import XaresEncoder

__all__ = ["XaresEncoder"]
