"""Batches fetched in the background, ahead of use."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterator over fetch(start), fetch(start + 1), … fetch(stop - 1), computed in one background thread.

    At most `depth` results wait to be taken. An exception of `fetch` is raised where its result would have come, and
    ends the iteration.

        with Prefetcher(batch_of_step, start=step, stop=steps) as batches:
            for batch in batches: …
    """

    def __init__(self, fetch: Callable[[int], T], start: int, stop: int, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth {depth} is not positive")
        self._fetch = fetch
        self._steps = iter(range(start, stop))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: deque[Future[T]] = deque()
        self._submit(depth)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._pending:
            self.close()
            raise StopIteration
        result = self._pending.popleft()
        try:
            value = result.result()
        except BaseException:
            self.close()
            raise
        self._submit(1)
        return value

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what is being fetched is waited for, what waits is dropped. The iterator is then at its end."""
        self._steps = iter(())
        self._pending.clear()
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, count: int) -> None:
        for step in islice(self._steps, count):
            self._pending.append(self._thread.submit(self._fetch, step))
