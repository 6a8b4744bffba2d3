"""Fetch the shards of coming requests before these are sent to the workers.

Only the training process fetches, in a few threads. A request is sent when all its shards are in
the cache, and they stay there until it was answered. So a worker finds every shard on the disk.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Generic, TypeVar

from data_shards.format.manifest import Shard
from rebias_dist.data.cache import Cache
from rebias_dist.data.remote import Store
from rebias_dist.data.workers import LOOK, Patience
from rebias_dist.errors import RebiasError

THREADS = 3
"""Shards that a rank fetches at the same time."""

_MOST_REQUESTS = 1000  # that are looked at ahead, however few shards they need

R = TypeVar("R")
T = TypeVar("T")


def _answer(future: Future[T], call: Callable[[], T]) -> None:
    """Give a future the result of a call, or its error."""
    try:
        value = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)


def _let_go(fetched: Future[int]) -> None:
    if fetched.exception() is None:
        Cache.let_go(fetched.result())


def waited_for(future: Future[T]) -> T:
    """Return the result of a call in another thread.

    Raises InterruptedRun or RebiasError as :class:`~rebias_dist.data.workers.Patience`.
    """
    patience = Patience()
    while not wait([future], LOOK).done:
        patience.check("the server is too slow or does not answer")
    try:
        return future.result()
    except OSError as error:
        raise RebiasError(f"{error.filename or 'shards'}: {error.strerror or error}") from None


def in_a_thread(call: Callable[[threading.Event], T]) -> T:
    """Return ``call(stopped)`` from a thread; ``stopped`` is set if this process gives up waiting.

    The thread may hang in a request for a while. So it is a daemon, which does not keep the process
    from ending; those of an executor would.
    """
    stopped, future = threading.Event(), Future[T]()
    threading.Thread(target=_answer, args=(future, lambda: call(stopped)), daemon=True).start()
    try:
        return waited_for(future)
    finally:
        stopped.set()


class Ahead(Generic[R]):
    """Yields requests in their order, each when its shards are here; closed at the end.

    Args:
        requests: drawn ahead of time.
        shards_of: the numbers of the shards that a request needs.
        shards: those of the split, by number.
        cache: where they are kept.
        store: where they come from.
        most: shards to fetch ahead of the request that is due. They are fewer if they would not
            fit into the cache.
    """

    def __init__(
        self,
        requests: Iterable[R],
        shards_of: Callable[[R], Sequence[int]],
        shards: Sequence[Shard],
        cache: Cache,
        store: Store,
        most: int,
    ) -> None:
        self._source = iter(requests)
        self._shards_of, self._shards = shards_of, shards
        self._cache, self._store, self._most = cache, store, most
        self._coming: deque[tuple[R, Sequence[int]]] = deque()
        self._sent: deque[Sequence[int]] = deque()
        self._uses: Counter[int] = Counter()  # coming and sent requests of each shard
        self._fetched: dict[int, Future[int]] = {}  # descriptors of coming and sent shards
        self._queue: queue.SimpleQueue[tuple[Future[int], Shard] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads = 0

    def __iter__(self) -> Iterator[R]:
        """Yield the requests."""
        more = True
        while True:
            while more and self._may_look_further():
                found = next(self._source, None)
                if found is None:
                    more = False
                    break
                needed = self._shards_of(found)
                self._coming.append((found, needed))
                self._uses.update(needed)
                for number in needed:
                    self._begin(number, at_once=False)
            if not self._coming:
                return
            request, needed = self._coming.popleft()
            for number in needed:
                self._begin(number, at_once=True)
            for number in needed:
                waited_for(self._fetched[number])
            self._sent.append(needed)
            yield request

    def answered(self) -> None:
        """Say that the oldest request was answered, so its shards may go."""
        for number in self._sent.popleft():
            self._uses[number] -= 1
            if not self._uses[number]:
                del self._uses[number]
                self._fetched.pop(number).add_done_callback(_let_go)

    def close(self) -> None:
        """Give up all fetches, and let all shards go."""
        self._stopped.set()
        for _ in range(self._threads):
            self._queue.put(None)
        for fetched in self._fetched.values():
            fetched.add_done_callback(_let_go)
        self._fetched.clear()

    def _may_look_further(self) -> bool:
        if not self._coming:
            return True
        fetched_all = len(self._fetched) == len(self._uses)
        few = len(self._uses) < self._most + len(self._coming[0][1])
        return fetched_all and few and len(self._coming) < _MOST_REQUESTS

    def _begin(self, number: int, *, at_once: bool) -> None:
        """Begin to fetch a shard; if it is not needed at once, only if there is room for it."""
        if number in self._fetched:
            return
        room = self._cache.limit - sum(self._shards[other].bytes for other in self._fetched)
        if not at_once and self._shards[number].bytes > room:
            return
        self._fetched[number] = Future()
        self._queue.put((self._fetched[number], self._shards[number]))
        if self._threads < min(THREADS, len(self._fetched)):
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (wanted := self._queue.get()) is not None:
            future, shard = wanted
            _answer(future, partial(self._cache.get, shard, self._store, self._stopped))
