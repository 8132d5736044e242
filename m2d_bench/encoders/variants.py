"""The weights of a variant where none are named: what an environment variable says, or what the cache holds."""

from __future__ import annotations

import logging
import os

from m2d_bench.encoders import checkpoint
from m2d_bench.errors import CheckpointError
from m2d_bench.settings import Storage

logger = logging.getLogger(__name__)


def find(variant: str, storage: Storage = Storage()) -> str:
    """Name of a variant's weights for `zoo.load`.

    Args:
        variant: Family as released names begin with it: m2d, m2d_s, m2d_as or msm_mae.
        storage: The cache.

    Returns:
        The value of M2D_BENCH_WEIGHTS_{VARIANT}, else the path of the one folder of this family in the cache.

    Raises:
        CheckpointError: Neither is there, or the cache holds several.
    """
    variable = f"M2D_BENCH_WEIGHTS_{variant.upper()}"
    if named := os.environ.get(variable):
        return named
    folder = storage.cache_root / "weights"
    folders = sorted(path for path in folder.glob(f"{variant}_vit_*") if path.suffix != ".part")
    found = [path for path in folders if checkpoint.files_in(path)]
    if len(found) == 1:
        logger.warning("%s: weights %s.", variant, found[0])
        return str(found[0])
    names = (
        f"the cache {folder} holds several: {', '.join(path.name for path in found)}"
        if found
        else (f"the cache {folder} holds no folder {variant}_vit_*")
    )
    raise CheckpointError(
        f"No weights chosen for {variant}: {variable} is not set and {names}. Set {variable} to a path or a name of "
        f"m2d-bench models, or pass one."
    )
