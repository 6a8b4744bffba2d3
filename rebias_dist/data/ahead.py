"""Fetch the shards of coming requests before these are sent to the workers.

Only the training process fetches, in a few threads. A request is sent when all its shards are in
the cache, and they stay there until it was answered. So a worker finds every shard on the disk.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class _Task(Generic[T]):
    """A call in a thread, which sets ``ended``."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._unwanted: Callable[[T], object] | None = None
        self._lock = threading.Lock()
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            value = self._call()
        except BaseException as error:
            self._error = error
        else:
            with self._lock:
                if self._unwanted is None:
                    self._result.append(value)
                else:
                    self._unwanted(value)
        finally:
            self.ended.set()

    def result(self) -> T:
        """Return what the call returned; raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result[0]

    def drop(self, close: Callable[[T], object]) -> None:
        """Close the result, now or when it comes."""
        with self._lock:
            self._unwanted = close
            for value in self._result:
                close(value)


def waited_for(task: _Task[T]) -> T:
    """Return the result of a task in another thread.

    Raises InterruptedRun or RebiasError as :class:`~rebias_dist.data.workers.Patience`.
    """
    patience = Patience()
    while not task.ended.wait(LOOK):
        patience.check("the server is too slow or does not answer")
    try:
        return task.result()
    except OSError as error:
        raise RebiasError(f"{error.filename or 'shards'}: {error.strerror or error}") from None


def in_a_thread(call: Callable[[threading.Event], T]) -> T:
    """Return ``call(stopped)`` from a thread; ``stopped`` is set if this process gives up waiting.

    The thread may hang in a request for a while; then it does not keep the process from ending.
    """
    stopped = threading.Event()
    task = _Task(lambda: call(stopped))
    threading.Thread(target=task.run, daemon=True).start()
    try:
        return waited_for(task)
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
        self._tasks: dict[int, _Task[int]] = {}
        self._queue: queue.SimpleQueue[_Task[int] | None] = queue.SimpleQueue()
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
                waited_for(self._tasks[number])
            self._sent.append(needed)
            yield request

    def answered(self) -> None:
        """Say that the oldest request was answered, so its shards may go."""
        for number in self._sent.popleft():
            self._uses[number] -= 1
            if not self._uses[number]:
                del self._uses[number]
                self._tasks.pop(number).drop(Cache.let_go)

    def close(self) -> None:
        """Give up all fetches, and let all shards go."""
        self._stopped.set()
        for _ in range(self._threads):
            self._queue.put(None)
        for task in self._tasks.values():
            task.drop(Cache.let_go)
        self._tasks.clear()

    def _may_look_further(self) -> bool:
        if not self._coming:
            return True
        fetched_all = len(self._tasks) == len(self._uses)
        few = len(self._uses) < self._most + len(self._coming[0][1])
        return fetched_all and few and len(self._coming) < _MOST_REQUESTS

    def _begin(self, number: int, *, at_once: bool) -> None:
        """Begin to fetch a shard; if it is not needed at once, only if there is room for it."""
        if number in self._tasks:
            return
        room = self._cache.limit - sum(self._shards[other].bytes for other in self._tasks)
        if not at_once and self._shards[number].bytes > room:
            return
        shard = self._shards[number]
        task = _Task(lambda: self._cache.get(shard, self._store, self._stopped))
        self._tasks[number] = task
        self._queue.put(task)
        if self._threads < min(THREADS, len(self._tasks)):
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            task.run()
