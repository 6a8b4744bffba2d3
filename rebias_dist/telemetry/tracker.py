"""Where the records of a run go: the interface of all places, and a thread for the slow ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from rebias_dist.ranks.waits import told

Plain = str | int | float | bool

END_SECONDS = 60.0
"""How long the end of a run waits for a tracker."""
HURRY_SECONDS = 10.0
"""How long a run that was told to stop, or that failed, waits for a tracker."""
_WAITING = 1000  # records that may wait for a tracker

_log = logging.getLogger("rebias_dist")


class Tracker:
    """A place for records. Each method does nothing, so a place implements only what it shows."""

    def scalars(self, step: int, values: Mapping[str, float], *, epoch: int, when: float) -> None:
        """Record scalars by tag; ``when`` is in seconds since 1970."""

    def text(self, tag: str, step: int, text: str) -> None:
        """Record a text in Markdown."""

    def image(self, tag: str, step: int, image: NDArray[np.uint8]) -> None:
        """Record an image, uint8 ``[3, height, width]``."""

    def final(self, step: int, config: Mapping[str, Plain], figures: Mapping[str, float]) -> None:
        """Record the final figures by name, with the configuration by dotted keys."""

    def flush(self) -> None:
        """Write or send what waits in memory."""

    def close(self, status: str | None) -> None:
        """End the records; ``status`` is the run's last status."""


Record = Callable[[Tracker], None]
"""Gives a tracker one record."""


class Apart:
    """Passes records on to a tracker from a thread of its own, so that training never waits.

    If the tracker raises an error, one warning names the tracker, the error and the cure, and the
    tracker gets no more records. If it is too slow, records are left out, and a warning says so.

    Args:
        name: of the tracker, for warnings.
        cure: how to get what is missing, for warnings.
        opened: opens the tracker; called in the thread.
        waiting: records that may wait for the tracker.
        patience: seconds that ``wait`` waits for the tracker.
    """

    def __init__(
        self,
        name: str,
        cure: str,
        opened: Callable[[], Tracker],
        *,
        waiting: int = _WAITING,
        patience: float = END_SECONDS,
    ) -> None:
        self._name, self._cure, self._opened = name, cure, opened
        self._waiting, self._patience = waiting, patience
        self._queue: SimpleQueue[Record | None] = SimpleQueue()
        self._left_out = 0
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, record: Record, *, important: bool = False) -> None:
        """Pass on a record; if too many wait, it is left out unless it is important."""
        if self._given_up:
            return
        if important or self._queue.qsize() < self._waiting:
            self._queue.put(record)
            return
        if not self._left_out:
            _log.warning(
                "%s: takes records more slowly than the run makes them, so some are left out "
                "there; metrics.jsonl has all of them; raise log.every_steps",
                self._name,
            )
        self._left_out += 1

    def end(self, status: str | None) -> None:
        """Let the tracker end its records once it has all of them; see :meth:`Tracker.close`."""
        self.put(lambda tracker: tracker.close(status), important=True)
        self._queue.put(None)

    def wait(self, *, hurry: bool) -> None:
        """Wait until the tracker has ended, but no longer than ``patience``; in a hurry less."""
        seconds = min(self._patience, HURRY_SECONDS) if hurry else self._patience
        with told(f"waiting for {self._name}"):
            self._thread.join(seconds)
        if self._thread.is_alive():
            self._give_up(f"did not end within {seconds:g} seconds")
        elif self._left_out:
            _log.warning("%s: %d records were left out in all", self._name, self._left_out)

    def _work(self) -> None:
        try:
            tracker = self._opened()
            while (record := self._queue.get()) is not None:
                record(tracker)
        # Whatever a tracker raises, the run does not need it.
        except Exception as error:
            self._give_up(str(error).strip().partition("\n")[0] or type(error).__name__)

    def _give_up(self, why: str) -> None:
        if not self._given_up:
            self._given_up = True
            _log.warning("%s: %s; the run goes on without it; %s", self._name, why, self._cure)
