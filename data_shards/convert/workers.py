"""Map a function over items in worker processes that hostile data may kill.

A worker may crash, run out of memory or hang; the item at fault is found and reported, all
others get their result.
"""

import multiprocessing
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Literal, TypeVar

from data_shards.errors import DataShardsError
from data_shards.processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

MEMORY = 512 * 2**20  # bytes a worker may hold
SECONDS = 120.0  # that one item may take

# Started afresh: a fork would inherit locks, threads and memory of whoever calls.
_CONTEXT = multiprocessing.get_context("spawn")
_POLL_SECONDS = 0.5
_MOST_FAILED_STARTS = 3
_ITEM, _POSITION, _BEATS = range(3)


@dataclass(frozen=True, slots=True)
class Crash:
    """What came of an item instead of a result.

    ``cause`` is ``crashed`` (killed by a signal, or it left), ``memory`` or ``timeout``;
    ``position`` what :func:`mark` was last told, -1 without a mark.
    """

    cause: Literal["crashed", "memory", "timeout"]
    position: int


@dataclass(slots=True)
class _Job(Generic[T]):
    numbers: list[int]
    items: list[T]
    deaths: int = 0


@dataclass(slots=True)
class _Worker(Generic[T]):
    process: SpawnProcess
    connection: Connection
    state: Any  # shared: number of the item in the job, its mark, a counter of progress
    job: _Job[T] | None = None
    beats: int = 0
    since: float = field(default_factory=time.monotonic)


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


_state: Any = None


def mark(position: int) -> None:
    """Tell, inside a function run by :func:`map_surviving`, which part of its item is begun.

    The part restarts the item's clock, and a crash names it. Elsewhere it does nothing.
    """
    if _state is not None:
        _state[_POSITION] = position
        _state[_BEATS] += 1


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
    time for a worker: items that take milliseconds need some 30 to hide the way to and fro.

    A worker holds at most ``memory`` bytes; beyond, allocations fail. If a worker dies, or
    an item (or a part of it, see :func:`mark`) takes longer than ``seconds``, the item at
    work is tried once more alone in a fresh worker, since a worker may be killed for no
    fault of the item; if that dies too, the item yields a :class:`Crash`. The other items of
    its chunk are repeated, so ``function`` may run more than once on an item. A MemoryError
    yields a Crash at once. Any other exception of ``function`` ends the map with it.

    Closing the iterator ends the workers; they end too when this process is killed. Raises
    DataShardsError if workers die before they begin.
    """
    pool = _Pool(function, workers, memory, seconds)
    try:
        yield from pool.run(iter(items), chunk)
    finally:
        pool.close()


class _Pool(Generic[T, R]):
    def __init__(
        self, function: Callable[[T], R], workers: int, memory: int, seconds: float
    ) -> None:
        self._function = function
        self._count = workers
        self._memory = memory
        self._seconds = seconds
        self._workers: list[_Worker[T]] = []
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
            while self._repeated or (more and drawn - yielded < window):
                worker = self._idle()
                if worker is None:
                    break
                if self._repeated:
                    job = self._repeated.popleft()
                else:
                    batch = [item for _, item in zip(range(chunk), items, strict=False)]
                    more = len(batch) == chunk
                    if not batch:
                        break
                    job = _Job(list(range(drawn, drawn + len(batch))), batch)
                    drawn += len(batch)
                self._assign(worker, job)
            self._listen()

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def _idle(self) -> _Worker[T] | None:
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) == self._count:
            return None
        ours, theirs = _CONTEXT.Pipe()
        state = _CONTEXT.RawArray("q", 3)
        process = _CONTEXT.Process(
            target=_serve, args=(self._function, theirs, state, self._memory), daemon=True
        )
        process.start()
        theirs.close()
        fresh: _Worker[T] = _Worker(process, ours, state)
        self._workers.append(fresh)
        return fresh

    def _assign(self, worker: _Worker[T], job: _Job[T]) -> None:
        worker.job = job
        worker.state[_ITEM] = worker.state[_POSITION] = -1
        worker.beats = worker.state[_BEATS]
        try:
            worker.connection.send(job.items)
        except (BrokenPipeError, ConnectionResetError):
            self._bury(worker, "crashed")

    def _listen(self) -> None:
        busy = [worker for worker in self._workers if worker.job]
        ready = wait([worker.connection for worker in busy], _POLL_SECONDS)
        for worker in busy:
            if worker.connection not in ready:
                self._watch(worker)
                continue
            try:
                finished, content = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._bury(worker, "crashed")
                continue
            if not finished:
                raise content
            assert worker.job is not None
            self._results.update(zip(worker.job.numbers, content, strict=True))
            self._failed_starts = 0
            worker.job = None

    def _watch(self, worker: _Worker[T]) -> None:
        beats, now = worker.state[_BEATS], time.monotonic()
        # A worker that has not begun its job is still importing: nobody's fault.
        if beats != worker.beats or worker.state[_ITEM] < 0:
            worker.beats, worker.since = beats, now
        elif now - worker.since > self._seconds:
            self._bury(worker, "timeout")

    def _bury(self, worker: _Worker[T], cause: Literal["crashed", "timeout"]) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        job = worker.job
        assert job is not None
        fault = worker.state[_ITEM]
        if fault < 0:
            self._failed_starts += 1
            if self._failed_starts == _MOST_FAILED_STARTS:
                raise DataShardsError(
                    f"worker processes die before they begin (exit code {worker.process.exitcode})"
                )
            self._repeated.append(job)
            return
        if len(job.items) > 1:
            # Alone, so that a second death proves whose fault it was.
            self._repeated.append(_Job([job.numbers.pop(fault)], [job.items.pop(fault)], 1))
            self._repeated.append(job)
        elif job.deaths:
            self._results[job.numbers[0]] = Crash(cause, worker.state[_POSITION])
        else:
            job.deaths += 1
            self._repeated.append(job)


def _serve(function: Callable[[T], R], connection: Connection, state: Any, memory: int) -> None:
    global _state
    _state = state
    end_with_parent()
    _limit_memory(memory)
    while True:
        try:
            items = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        results: list[R | Crash] = []
        try:
            for number, item in enumerate(items):
                state[_POSITION] = -1
                state[_ITEM] = number
                state[_BEATS] += 1
                try:
                    results.append(function(item))
                except MemoryError:
                    results.append(Crash("memory", state[_POSITION]))
            answer: tuple[bool, object] = (True, results)
        except Exception as error:
            answer = (False, error)
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _limit_memory(memory: int) -> None:
    """Limit the address space so that the memory in use stays below ``memory`` bytes.

    Libraries reserve address space that they never use, threads most of all; what is
    reserved already does not count.
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
