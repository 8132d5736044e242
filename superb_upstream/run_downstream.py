"""`python -m m2d_bench.superb_upstream.run_downstream …`: s3prl's run_downstream.py, its arguments, with our upstreams.

The same as `m2d-bench superb --s3prl_settings …`.
"""

import sys

from m2d_bench.registry import resolve

if __name__ == "__main__":
    sys.exit(resolve("m2d_bench.cli:main")(["superb", "--s3prl_settings", *sys.argv[1:]]))
