"""Which request may start next, so that no host is asked too often.

The caller reads the clock, starts the requests and waits.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Host(Generic[T]):
    waiting: list[tuple[float, int, T]] = field(default_factory=list)  # a heap
    running: int = 0
    next_start: float = 0.0
    ticket: int = -1  # of its valid entry in the heap of hosts


class Schedule(Generic[T]):
    """Jobs by host; at most ``per_host`` run at once, with ``delay`` seconds between starts."""

    def __init__(self, per_host: int, delay: float) -> None:
        self._per_host = per_host
        self._delay = delay
        self._hosts: dict[str, _Host[T]] = {}
        self._ready: list[tuple[float, int, str]] = []  # a heap; entries may be out of date
        self._numbers = itertools.count()

    def add(self, host: str, job: T, not_before: float = 0.0) -> None:
        """Add a job for ``host`` that may start at the time ``not_before``."""
        state = self._hosts.setdefault(host, _Host())
        heapq.heappush(state.waiting, (not_before, next(self._numbers), job))
        self._enter(host)

    def take(self, now: float) -> tuple[str, T] | None:
        """Return a host and its job to start at once, None if none may start now."""
        if self.next_time() > now:
            return None
        _, _, host = heapq.heappop(self._ready)
        state = self._hosts[host]
        _, _, job = heapq.heappop(state.waiting)
        state.running += 1
        state.next_start = max(state.next_start, now + self._delay)
        self._enter(host)
        return host, job

    def next_time(self) -> float:
        """When the next job may start; infinity if a running job has to end first."""
        while self._ready:
            time, ticket, host = self._ready[0]
            if self._hosts[host].ticket == ticket:
                return time
            heapq.heappop(self._ready)
        return float("inf")

    def done(self, host: str) -> None:
        """A job that :meth:`take` returned has ended."""
        self._hosts[host].running -= 1
        self._enter(host)

    def pause(self, host: str, until: float) -> None:
        """Start nothing on ``host`` before the time ``until``."""
        state = self._hosts[host]
        state.next_start = max(state.next_start, until)
        self._enter(host)

    def drop(self, host: str) -> list[T]:
        """Remove and return the jobs that wait for ``host``."""
        state = self._hosts[host]
        jobs = [job for _, _, job in sorted(state.waiting, key=lambda entry: entry[1])]
        state.waiting.clear()
        self._enter(host)
        return jobs

    def _enter(self, host: str) -> None:
        """Replace the entry of the host among those that may start."""
        state = self._hosts[host]
        state.ticket = next(self._numbers)
        if state.waiting and state.running < self._per_host:
            time = max(state.next_start, state.waiting[0][0])
            heapq.heappush(self._ready, (time, state.ticket, host))
