"""Saving beside training: the state is copied at once, and written while training goes on."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rebias_dist.errors import RebiasError
from rebias_dist.runs import checkpoint

log = logging.getLogger("rebias_dist")


class Saver:
    """Writes checkpoints into a folder, one at a time, in a thread; for rank 0 alone.

    An error of the thread is not raised in training, because rank 0 must not leave alone. It is
    returned by :meth:`fault`, and the caller tells the other ranks.

    Args:
        folder: of the run's checkpoints.
        keep: number of newest checkpoints that are kept, besides the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._fault: RebiasError | None = None

    def begin(self, step: int, state: dict[str, Any], best_step: int | None) -> float:
        """Copy a state and start to write it; return the seconds that training had to wait.

        They include the wait for the previous checkpoint if that is still being written.
        """
        begin = time.perf_counter()
        self.wait()
        try:
            copy = checkpoint.copied(state)
        except (MemoryError, RuntimeError) as error:  # CUDA raises the latter without memory
            self._note(error)
            return time.perf_counter() - begin
        stall = time.perf_counter() - begin
        self._writing = self._thread.submit(self._write, step, copy, best_step, stall)
        return stall

    def _write(self, step: int, state: dict[str, Any], best: int | None, stall: float) -> None:
        begin = time.perf_counter()
        size = checkpoint.save(self._folder, step, state, keep=self._keep, best_step=best)
        log.info(
            "checkpoint of step %d: %.1f MB, training waited for %.2f s, written in %.2f s",
            step,
            size / 1e6,
            stall,
            time.perf_counter() - begin,
        )

    def _note(self, error: Exception) -> None:
        if not isinstance(error, RebiasError):
            reason = str(error) or type(error).__name__
            error = RebiasError(f"{self._folder}: a checkpoint could not be saved: {reason}")
        self._fault = error

    def wait(self) -> None:
        """Wait until the checkpoint is written; an error is kept for :meth:`fault`."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except Exception as error:
                self._note(error)

    def fault(self) -> RebiasError | None:
        """Return the error of a checkpoint that could not be saved, or None; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._fault

    def close(self) -> None:
        """Wait until the checkpoint is written, and end the thread."""
        self.wait()
        self._thread.shutdown()
