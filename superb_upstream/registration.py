"""Our upstreams' entries in s3prl's hub."""

from __future__ import annotations

from functools import partial
from importlib import import_module

from m2d_bench import compat
from m2d_bench.settings import Storage
from m2d_bench.superb_upstream.m2d import hubconf

ENTRIES = {name: entry for name, entry in vars(hubconf).items() if callable(entry) and not name.startswith("_")}
"""All names of ours in s3prl's hub."""


def register(storage: Storage = Storage()) -> None:
    """Puts the entries into `s3prl.hub`, with the cache of weights that they are to use.

    Also while that is being imported, by a line in it that imports this package.
    """
    compat.restore()
    hub = import_module("s3prl.hub")
    for name, entry in ENTRIES.items():
        setattr(hub, name, partial(entry, storage=storage))
