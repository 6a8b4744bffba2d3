"""The attempts of a run, in ``attempts.json`` of its folder: where each began and how it ended.

A restart learns from them whether earlier restarts got any further, and which steps failed before.
Only rank 0 uses this module, because it holds the lock on the folder.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_shards.errors import DataShardsError
from data_shards.system.files import read_json, write_synced
from rebias_dist.errors import (
    EXIT_FAILED,
    EXIT_GIVE_UP,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    CrashLoopError,
    NonFiniteError,
    RebiasError,
    RolledBack,
)

log = logging.getLogger("rebias_dist")

_ENDS = {
    EXIT_FAILED: "failed",
    EXIT_USAGE: "refused",
    EXIT_GIVE_UP: "gave up",
    EXIT_INTERRUPTED: "interrupted",
}
# An attempt that was killed is still recorded as running.
_CRASHED = ("running", "failed")
_KEPT = 100  # attempts on record


class Attempts:
    """The recorded attempts of a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "attempts.json"
        self._state = folder / "state.json"
        self.attempts: list[dict[str, Any]] = []
        self.rollbacks: list[int] = []
        """The steps at which a gradient was not finite and the run was rolled back."""
        if not os.path.lexists(self._path):
            return
        try:
            record = read_json(self._path)
            attempts, rollbacks = list(record["attempts"]), list(record["rollbacks"])
            found = [kind for a in attempts for kind in (type(a["from"]), type(a["outcome"]))]
            if found != [int, str] * len(attempts) or {type(step) for step in rollbacks} - {int}:
                raise TypeError("a value has a wrong type")
            self.attempts, self.rollbacks = attempts, rollbacks
        except (DataShardsError, KeyError, TypeError) as error:
            # The weights do not depend on it; only the count of restarts starts again.
            log.warning("%s: damaged, so earlier attempts are not counted (%s)", self._path, error)

    @contextmanager
    def attempt(self, step: int, restarts: int, reached: Callable[[], int]) -> Iterator[None]:
        """Record the beginning of an attempt, and at the end of the block its outcome.

        Args:
            step: of the newest checkpoint, where the attempt begins.
            restarts: how many attempts, after the first, may begin at that step and crash.
            reached: returns the attempt's current step.

        Raises:
            CrashLoopError: the last ``restarts`` + 1 attempts all began at that step and crashed.
            OSError: the record cannot be written.
        """
        self._begin(step, restarts)
        outcome = "failed"
        try:
            yield
            outcome = "finished"
        except RolledBack:
            outcome = "rolled back"
            raise
        except RebiasError as error:
            outcome = _ENDS[error.exit_code]
            raise
        finally:
            self.attempts[-1] |= {"outcome": outcome, "reached": reached()}
            with suppress(OSError):  # on a full disk the attempt stays recorded as running
                self._write()

    def _begin(self, step: int, restarts: int) -> None:
        if self.attempts and self.attempts[-1]["outcome"] == "running":
            self.attempts[-1]["reached"] = self._last_known_step()
        crashed = 0
        for attempt in reversed(self.attempts):
            if attempt["from"] != step or attempt["outcome"] not in _CRASHED:
                break
            crashed += 1
        here = {"from": step, "process": os.getpid(), "host": platform.node()}
        if crashed > restarts:
            reached = [a.get("reached") for a in self.attempts[-crashed:]]
            # The next start, after the cause is removed, counts from zero.
            self._append({**here, "outcome": "gave up"})
            raise CrashLoopError(
                f"{self._path.parent}: {crashed} attempts in a row have begun at step {step} and "
                f"failed (the last at step {reached[-1]}), so another would fail too; find the "
                "cause in logs/ and remove it, then start the run again with the same command"
            )
        self._append({**here, "outcome": "running"})

    def roll_back(self, step: int, limit: int) -> None:
        """Record that a gradient was not finite at ``step`` and the run is rolled back.

        Raises:
            NonFiniteError: there were ``limit`` rollbacks before.
        """
        if len(self.rollbacks) >= limit:
            raise NonFiniteError(
                f"not finite at step {step}, after {limit} rollbacks (steps "
                f"{', '.join(map(str, self.rollbacks[-5:]))}); lower optimizer.lr or set "
                "optimizer.clip_norm"
            )
        self.rollbacks.append(step)
        self._write()

    @property
    def left_out(self) -> list[int]:
        """Return the steps that failed again after a rollback; they are skipped from now on."""
        return sorted(step for step, times in Counter(self.rollbacks).items() if times > 1)

    def _last_known_step(self) -> int | None:
        try:
            step = read_json(self._state)["step"]
        except (DataShardsError, KeyError, TypeError):
            return None
        return step if isinstance(step, int) else None

    def _append(self, attempt: dict[str, Any]) -> None:
        self.attempts = [*self.attempts, attempt][-_KEPT:]
        self._write()

    def _write(self) -> None:
        record = {"attempts": self.attempts, "rollbacks": self.rollbacks}
        write_synced(self._path, (json.dumps(record, indent=1) + "\n").encode())
