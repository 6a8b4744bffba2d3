"""Worker processes that load data: what they hear, how long they are waited for, how they fail."""

from __future__ import annotations

import atexit
import errno
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data_shards.system.processes import die_with_parent, ignore_stop_signals
from rebias_dist.errors import InterruptedRun, RebiasError

_PREFETCHED = 2  # micro-batches that a worker may be ahead of the one that was asked for
SLOTS = _PREFETCHED + 1
"""Buffers of a worker. With this many, none is filled again before it was read: DataLoader asks a
worker for another micro-batch when it takes one from it, and the receiver copies that one before it
takes the next."""

LOOK = 1.0
"""Seconds between two looks at the clock and at the request to stop."""
_LONG = 10.0  # seconds of waiting for data after which the log says so
# A peer that waits for this rank must not give it up before this rank can say what is wrong.
_PART = 0.75

_log = logging.getLogger("rebias_dist")
_started: list[BaseProcess] = []
_starter = 0  # the process that started them; one that it forks has no right to end them


@dataclass(frozen=True)
class _Bounds:
    seconds: float = math.inf
    stop: Callable[[], bool] = lambda: False


_bounds = _Bounds()


@contextmanager
def bounded_waits(minutes: float, stop: Callable[[], bool]) -> Iterator[None]:
    """Bound every wait for workers inside the block.

    Args:
        minutes: how long the ranks wait for each other; a rank waits for its data three quarters
            of that.
        stop: whether this process was asked to stop; if so, it reads nothing more and does not
            wait any longer.
    """
    global _bounds
    before, _bounds = _bounds, _Bounds(60 * minutes * _PART, stop)
    try:
        yield
    finally:
        _bounds = before


def fetched_by_workers(
    fetcher: Dataset[Any], requests: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Yield ``fetcher[request]`` for each request, in their order, from worker processes.

    Args:
        fetcher: called in the workers. An exception that it returns is raised here.
        requests: sent to the workers.
        workers: number of processes; 0: this process does the work.

    Raises:
        RebiasError: a worker failed or brings nothing within the bound.
        InterruptedRun: this process was asked to stop.
    """
    with _without_advice():
        loader = DataLoader(
            fetcher,
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            timeout=LOOK if workers else 0,
            # Python 3.14's default would start each worker with its own copy of torch in memory.
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=partial(_shield_worker, os.getpid()) if workers else None,
            # DataLoader draws a number from its generator; this keeps the global one unchanged.
            generator=torch.Generator(),
        )
    try:
        source = _start(loader) if workers else iter(loader)
        while True:
            _heed_stop()
            yield _next(source) if workers else next(source)
    except StopIteration:
        return


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave a request to stop unheard inside the block, for what must be done whole."""
    global _bounds
    before, _bounds = _bounds, replace(_bounds, stop=lambda: False)
    try:
        yield
    finally:
        _bounds = before


def _heed_stop() -> None:
    if _bounds.stop():
        raise InterruptedRun(
            "interrupted while it waited for data; it goes on from the newest checkpoint"
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide torch's warning of more workers than cores, a number that the user has chosen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    global _starter
    _starter = os.getpid()
    before = set(multiprocessing.active_children())
    try:
        with _without_advice():
            return iter(loader)
    except (OSError, RuntimeError) as error:
        raise _of_workers(error) from None
    finally:
        _started[:] = [worker for worker in _started if worker in before]
        _started.extend(set(multiprocessing.active_children()) - before)


def _next(source: Iterator[Any]) -> Any:
    patience = Patience()
    while True:
        try:
            found = next(source)
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise _of_workers(error) from None
        except OSError as error:
            raise _of_workers(error) from None
        else:
            if isinstance(found, RebiasError):
                for trace in getattr(found, "__notes__", ()):
                    _log.error("%s", trace)
                raise found
            return found
        try:
            patience.check("a data worker hangs, or the file system does not answer")
        except RebiasError:
            end_workers()
            raise


class Patience:
    """Decides how long this process waits for data, inside the block of :func:`bounded_waits`."""

    def __init__(self) -> None:
        """Begin to wait."""
        self._begin, self._told = time.monotonic(), _LONG

    def check(self, cause: str) -> None:
        """Return if the wait may go on, and log it if it has become long.

        Args:
            cause: what may be wrong if it is too long.

        Raises:
            InterruptedRun: this process was asked to stop.
            RebiasError: it has waited too long.
        """
        waited = time.monotonic() - self._begin
        _heed_stop()
        if waited > _bounds.seconds:
            raise RebiasError(
                f"no data for {waited:.0f} s: {cause} "
                "(the limit is three quarters of faults.step_minutes)"
            )
        if waited > self._told:
            self._told *= 2
            _log.info("has waited for data for %.0f s", waited)


def _of_workers(error: Exception) -> RebiasError:
    """Return the error of a worker that has ended or could not be started."""
    text = next(iter(str(error).splitlines()), "")
    if isinstance(error, OSError):
        text = f"they cannot be started ({error.strerror or error})"
        if error.errno == errno.ENOSPC:  # of the semaphores in their queues
            text += "; /dev/shm is full: free it, or give a container more (docker run --shm-size)"
    return RebiasError(f"data workers: {text}; data.workers 0 does without them")


def transit_memory(workers: int, samples: int, sample_bytes: int) -> int:
    """Return the bytes of memory in which the workers of a rank pass on images.

    Args:
        workers: of one rank.
        samples: of a micro-batch.
        sample_bytes: of an image.
    """
    return workers * SLOTS * samples * sample_bytes


@atexit.register
def end_workers() -> None:
    """Kill all workers: a program does not end before they do, and one that hangs never does."""
    if _starter != os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    alive = [worker for worker in _started if worker.is_alive()]
    if not alive:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises
    for worker in alive:
        worker.kill()


def _shield_worker(parent: int, worker_id: int) -> None:
    """Let only the parent end this worker, and end the worker with the parent.

    Schedulers and terminals signal a whole process group. The parent then finishes its step
    and saves, for which it still needs its workers. SIGTERM cannot just be ignored, because the
    parent uses it to end its workers when it exits. So it is blocked, and a thread waits for it
    and checks its sender.

    A worker shares the parent's open files, among them the lock on the run. If it outlived a
    killed parent, the run could not be resumed.
    """
    die_with_parent(parent)
    ignore_stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()


def _leave_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
