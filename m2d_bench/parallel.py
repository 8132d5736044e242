"""Work ahead in threads: decoding releases the interpreter, so threads do."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], jobs: int, ahead: int) -> Iterator[R]:
    """Like map in threads, but never more than `ahead` results wait in memory; left early, it drops what waits."""
    pool = ThreadPoolExecutor(jobs or os.cpu_count())
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
