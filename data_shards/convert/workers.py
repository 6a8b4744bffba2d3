"""Map a function over items in worker processes that hostile data may kill.

A worker may crash, run out of memory or hang. The item at fault is found and reported, and all
others get their result.

No library was found that does this. ``ProcessPoolExecutor`` loses all items when one worker dies,
and cannot kill a worker before Python 3.14. ``pebble`` gives up all items when a worker dies before
it begins one, and :func:`mark` could not restart its time limit.
"""

import logging
import multiprocessing
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar

from data_shards.errors import DataShardsError
from data_shards.system.processes import end_with_parent, usable_cores

T = TypeVar("T")
R = TypeVar("R")

MEMORY = 512 * 2**20  # bytes a worker may hold
SECONDS = 120.0  # that one item may take

# A forked worker would inherit locks, threads and memory of the caller.
_CONTEXT = multiprocessing.get_context("spawn")
_MOST_FAILED_STARTS = 3
_ITEM, _POSITION = range(2)


@dataclass(frozen=True, slots=True)
class Crash:
    """Stands for the result of an item that has none.

    ``cause`` is ``crashed`` (killed by a signal, or it left), ``memory`` or ``timeout``;
    ``position`` is that of the last :func:`mark`, -1 without one.
    """

    cause: Literal["crashed", "memory", "timeout"]
    position: int


@dataclass(slots=True)
class _Job(Generic[T]):
    numbers: list[int]
    items: list[T]
    deaths: int = 0


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return usable_cores()


def map_surviving(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    chunk: int = 1,
    memory: int = MEMORY,
    seconds: float = SECONDS,
) -> Iterator[R | Crash]:
    """Yield ``function(item)`` for each of ``items``, in their order, from worker processes.

    ``function``, items and results must be picklable; the module of the caller must be
    importable without side effects. ``items`` are drawn as they are needed, ``chunk`` at a
    time for a worker. For items of a few milliseconds, about 30 hide the cost of sending.

    A worker holds at most ``memory`` bytes; beyond that, allocations fail. If a worker dies, or
    an item (or a part of it, see :func:`mark`) takes longer than ``seconds``, the item is tried
    once more, alone in a fresh worker, because the worker may have been killed for another reason.
    If that worker dies too, the item yields a :class:`Crash`. The other items of its chunk are
    repeated, so ``function`` may run more than once on an item. A MemoryError yields a Crash at
    once. Any other exception of ``function`` ends the map and is raised.

    Closing the iterator ends the workers; they end too when this process is killed. Raises
    DataShardsError if workers die before they begin.
    """
    pool = _Pool(function, workers, memory, seconds)
    try:
        yield from pool.run(iter(items), chunk)
    finally:
        pool.close()


class _Worker(Generic[T, R]):
    def __init__(self, function: Callable[[T], R], memory: int, seconds: float) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        # Shared: the number of the item in the job, -1 before it is begun, and its mark.
        self.state: Any = _CONTEXT.RawArray("q", 2)
        arguments = (function, theirs, self.state, memory, seconds)
        self.process = _CONTEXT.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> int | None:
        """Kill the process if it still runs; return its exit code."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        return self.process.exitcode


class _Pool(Generic[T, R]):
    def __init__(
        self, function: Callable[[T], R], workers: int, memory: int, seconds: float
    ) -> None:
        self._arguments = (function, memory, seconds)
        self._count = workers
        # All that live: an interrupt may come while one is neither idle nor busy.
        self._workers: list[_Worker[T, R]] = []
        self._idle: list[_Worker[T, R]] = []
        self._busy: dict[object, tuple[_Worker[T, R], _Job[T]]] = {}
        self._results: dict[int, R | Crash] = {}
        self._repeated: deque[_Job[T]] = deque()
        self._failed_starts = 0

    def run(self, items: Iterator[T], chunk: int) -> Iterator[R | Crash]:
        # How far work runs ahead of the oldest item that is still missing.
        window = 8 * chunk * self._count
        drawn = yielded = 0
        more = True
        while True:
            while yielded in self._results:
                yield self._results.pop(yielded)
                yielded += 1
            if not more and yielded == drawn:
                return
            while len(self._busy) < self._count and (
                self._repeated or (more and drawn - yielded < window)
            ):
                if self._repeated:
                    job = self._repeated.popleft()
                else:
                    batch = [item for _, item in zip(range(chunk), items, strict=False)]
                    more = len(batch) == chunk
                    if not batch:
                        break
                    job = _Job(list(range(drawn, drawn + len(batch))), batch)
                    drawn += len(batch)
                self._assign(job)
            if self._busy:
                for ready in wait([worker.connection for worker, _ in self._busy.values()]):
                    self._take(*self._busy.pop(ready))

    def close(self) -> None:
        for worker in self._workers:
            worker.end()

    def _begin(self) -> _Worker[T, R]:
        worker: _Worker[T, R] = _Worker(*self._arguments)
        self._workers.append(worker)
        return worker

    def _assign(self, job: _Job[T]) -> None:
        worker = self._idle.pop() if self._idle else self._begin()
        worker.state[_ITEM] = worker.state[_POSITION] = -1
        try:
            worker.connection.send(job.items)
        except (BrokenPipeError, ConnectionResetError):
            self._bury(worker, job)
        else:
            self._busy[worker.connection] = worker, job

    def _take(self, worker: _Worker[T, R], job: _Job[T]) -> None:
        try:
            finished, content = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker, job)
            return
        self._idle.append(worker)
        if not finished:
            raise content
        self._results.update(zip(job.numbers, content, strict=True))
        self._failed_starts = 0

    def _bury(self, worker: _Worker[T, R], job: _Job[T]) -> None:
        code = worker.end()
        self._workers.remove(worker)
        fault = worker.state[_ITEM]
        if fault < 0:
            self._failed_starts += 1
            if self._failed_starts == _MOST_FAILED_STARTS:
                raise DataShardsError(f"worker processes die before they begin (exit code {code})")
            self._repeated.append(job)
        elif len(job.items) > 1:
            # Alone, so that a second death proves whose fault it was.
            self._repeated.append(_Job([job.numbers.pop(fault)], [job.items.pop(fault)], 1))
            self._repeated.append(job)
        elif job.deaths:
            cause: Literal["crashed", "timeout"]
            cause = "timeout" if code == -signal.SIGALRM else "crashed"
            self._results[job.numbers[0]] = Crash(cause, worker.state[_POSITION])
        else:
            job.deaths += 1
            self._repeated.append(job)


# The state of this process, if it is a worker, and the seconds that an item may take.
_working: tuple[Any, float] | None = None


def mark(position: int) -> None:
    """Tell, inside a function run by :func:`map_surviving`, which part of its item is begun.

    This restarts the time limit of the item, and a crash names the part. Outside of such a function
    it does nothing.
    """
    if _working is not None:
        state, seconds = _working
        state[_POSITION] = position
        # When the time is up, the kernel ends the process with SIGALRM, also inside a decoder.
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _serve(
    function: Callable[[T], R], connection: Connection, state: Any, memory: int, seconds: float
) -> None:
    global _working
    _working = state, seconds
    end_with_parent()
    logging.disable(logging.WARNING)  # each worker would repeat what its parent has said
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory(memory)
    while True:
        try:
            items = connection.recv()
            connection.send(_answer(function, items, state))
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return


def _answer(function: Callable[[T], R], items: list[T], state: Any) -> tuple[bool, object]:
    """Return True with the results, or False with the exception that ends the map."""
    results: list[R | Crash] = []
    try:
        for number, item in enumerate(items):
            state[_ITEM] = number
            mark(-1)
            try:
                results.append(function(item))
            except MemoryError:
                results.append(Crash("memory", state[_POSITION]))
        return True, results
    except Exception as error:
        return False, error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(memory: int) -> None:
    """Limit the address space so that the memory in use stays below ``memory`` bytes.

    Libraries, and threads most of all, reserve address space that they never use. So the space
    that is reserved already does not count.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        reserved, resident = (
            int(pages) * resource.getpagesize() for pages in file.read().split()[:2]
        )
    limit = reserved + max(memory - resident, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
