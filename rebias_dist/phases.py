"""Time spent in each phase of a training step; the phases are disjoint and add up to the whole.

Code marks a phase with ``with phase("forward"):``. Its time is not counted for a phase around it.
Without a clock a mark does nothing and costs hardly anything. It never touches a tensor.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

import torch

PHASES = ("data_wait", "forward", "backward", "objective", "communication", "optimizer", "other")
"""All phases; ``other`` is the time outside every mark."""
_OUTER = "other"
_MOST_MARKS = 4096  # waiting for the device; with more, those that it has passed are added up


class Clock(Protocol):
    """Measures how long each phase lasts."""

    def switch(self, phase: str) -> str:
        """Begin a phase, which ends the current one; return the one that ended."""

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase since the last reading, and start anew."""


class HostClock:
    """Measures phases by the time of this process; for a CPU, which works synchronously."""

    def __init__(self) -> None:
        self._phase = _OUTER
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._since = time.perf_counter()

    def switch(self, phase: str) -> str:
        """Begin a phase, which ends the current one; return the one that ended."""
        now = time.perf_counter()
        before = self._phase
        self._seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase since the last reading, and start anew."""
        self.switch(self._phase)
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds


class Event(Protocol):
    """A mark in a device's queue of work, such as ``torch.cuda.Event(enable_timing=True)``."""

    def record(self) -> None:
        """Put the mark behind all work that is queued so far."""

    def query(self) -> bool:
        """Return whether the device has passed the mark."""

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""

    def elapsed_time(self, end: Any, /) -> float:
        """Return the milliseconds from this mark to another."""


class DeviceClock:
    """Measures phases by the time of a device, which works asynchronously.

    A switch records an event and does not wait; a reading waits for the last event. While the
    process waits for data, the device may still have work: only the time when it is idle counts
    as ``data_wait``.

    Args:
        new_event: makes an event on the device.
    """

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self._new_event = new_event
        self._free: list[Event] = []
        self._marks: deque[tuple[Event, str]] = deque()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = _OUTER
        self.switch(_OUTER)

    def switch(self, phase: str) -> str:
        """Begin a phase, which ends the current one; return the one that ended."""
        before = self._phase
        event = self._free.pop() if self._free else self._new_event()
        event.record()
        self._marks.append((event, phase))
        self._phase = phase
        if len(self._marks) > _MOST_MARKS:
            self._add_up()
        return before

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase since the last reading, and start anew."""
        self.switch(self._phase)
        self._marks[-1][0].synchronize()
        self._add_up()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _add_up(self) -> None:
        """Add up the phases whose end the device has passed, and reuse their events."""
        while len(self._marks) > 1 and self._marks[1][0].query():
            event, phase = self._marks.popleft()
            self._seconds[phase] += event.elapsed_time(self._marks[0][0]) / 1e3
            self._free.append(event)


def clock_of(device: torch.device) -> Clock:
    """Return a clock for the work of a device."""
    if device.type != "cuda":
        return HostClock()
    return DeviceClock(functools.partial(torch.cuda.Event, enable_timing=True))


_clock: Clock | None = None


@contextmanager
def timed_by(clock: Clock) -> Iterator[None]:
    """Measure the phases inside the block with this clock; only one clock is used at a time."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


class _Phase:
    # Not a generator, which takes three times as long: a step has dozens of phases.
    __slots__ = ("_clock", "_name", "_outer")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._clock = _clock
        if _clock is not None:
            self._outer = _clock.switch(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._clock is not None:
            self._clock.switch(self._outer)


def phase(name: str) -> _Phase:
    """Return a context whose time counts for a phase, one of ``PHASES``."""
    return _Phase(name)


def switch(name: str) -> None:
    """Begin a phase that lasts until the :func:`phase` around it ends."""
    if _clock is not None:
        _clock.switch(name)
