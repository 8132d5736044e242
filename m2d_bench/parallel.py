"""Work ahead in threads: decoding releases the interpreter, so threads do."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    jobs: int,
    ahead: int,
    *,
    weight: Callable[[T], float] = lambda item: 0,
    heaviest: float = 0,
) -> Iterator[R]:
    """Like map in threads, but what is begun is bounded; left early, it drops what waits.

    Args:
        function: Applied to each item.
        items: The items.
        jobs: Threads; 0 means one a core.
        ahead: Most results that wait in memory.
        weight: What an item takes of what must not be used up, such as memory.
        heaviest: Most that items take together; one that takes more goes alone.
    """
    pool = ThreadPoolExecutor(jobs or os.cpu_count())
    try:
        waiting: deque[tuple[Future[R], float]] = deque()
        for item in items:
            own = weight(item)
            while waiting and (len(waiting) > ahead or own + sum(taken for _, taken in waiting) > heaviest):
                yield waiting.popleft()[0].result()
            waiting.append((pool.submit(function, item), own))
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
