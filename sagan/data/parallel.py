"""Work on all cores, results in order, memory bounded."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

GROUP = 8  # items that a thread takes at once


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield function(item) in the order of the items, computed by `threads` threads (None: one a core).

    `items` is consumed lazily, a few groups ahead of the results. An exception of `function` is raised in its turn.
    Threads, because decoding, resizing and hashing release the interpreter's lock: on two cores they are faster than
    processes on photographs (2000 against 1700 images/s) and fast enough on 32-pixel files (8000 against 13000).
    """
    threads = threads or os.cpu_count() or 1
    remaining = iter(items)
    pending: deque[Future[list[R]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while group := list(islice(remaining, GROUP)):
            pending.append(pool.submit(_apply, function, group))
            if len(pending) > 2 * threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]
