"""How fast training goes and how much of the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Images per second and the share of waiting, since the last reading."""

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._reset()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    def start(self) -> None:
        """Leave out what happened since the last reading: it was no training."""
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def step(self) -> None:
        """Count a step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return the scalars since the last reading, and start anew."""
        elapsed = time.perf_counter() - self._started
        values = {
            "speed/images_per_s": self._steps * self._global_batch / elapsed,
            "speed/data_wait": self._waited / elapsed,
        }
        self._reset()
        return values
