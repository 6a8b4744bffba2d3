"""Lines about work that takes long, so that no program is silent for more than two seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

_SOON = 2.0  # seconds
_LONGEST = 60.0  # seconds between two lines; the pauses double until then

_log = logging.getLogger("rebias_dist")


class Work:
    """How far a piece of work is.

    Args:
        what: name of the work, for the lines.
        total: its parts; None if they cannot be counted.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.done = 0
        """Parts that are done; whoever does the work counts them here."""
        self._what, self._total = what, total
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the time since the work began."""
        return time.monotonic() - self._begin

    def __str__(self) -> str:
        """Return the line: what, how much of it, how long, and how long it will still take."""
        parts = [] if self._total is None else [f"{self.done} of {self._total}"]
        parts.append(f"{duration(self.seconds)} so far")
        if self._total and self.done:
            left = self.seconds / self.done * (self._total - self.done)
            parts.append(f"about {duration(left)} left")
        return f"{self._what}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def told(
    what: str, total: int | None = None, *, aloud: bool = True, after: float = _SOON
) -> Iterator[Work]:
    """Say how far the work of the block is: after two seconds, and then again and again.

    The lines go to the run's log, or to stderr while there is none.

    Args:
        what: name of the work.
        total: its parts; the block counts them in ``Work.done``. None: they cannot be counted.
        aloud: whether to say anything; usually only rank 0 does.
        after: seconds until the first line.
    """
    work = Work(what, total)
    ended = threading.Event()

    def speak() -> None:
        pause = after
        while not ended.wait(pause):
            _say(str(work))
            pause = min(2 * pause, _LONGEST)

    if aloud:
        threading.Thread(target=speak, daemon=True).start()
    try:
        yield work
    finally:
        ended.set()


def _say(line: str) -> None:
    if _log.hasHandlers():
        _log.info("%s", line)
    elif sys.stderr is not None:
        with suppress(OSError, ValueError):  # it may be closed
            now = time.strftime("%Y-%m-%d %H:%M:%S")  # as in the log
            print(f"{now} INFO {line}", file=sys.stderr, flush=True)
