"""When a run is saved, and how all its ranks leave together when one was asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

from rebias_dist.config.schema import CheckpointConfig
from rebias_dist.errors import InterruptedRun, RebiasError
from rebias_dist.ranks.session import Session
from rebias_dist.runs.saver import Saver
from rebias_dist.runs.snapshot import Snapshot
from rebias_dist.telemetry.writers import Status, Telemetry


class _Wish(IntEnum):
    """What a rank wants between two steps; the greatest of all ranks' wishes is done."""

    GO_ON = 0
    SAVE = 1
    LEAVE = 2


class Keeper:
    """Saves a run while it trains and before it leaves.

    Args:
        settings: when to save.
        at: the state of the run.
        saver: writes the checkpoints; used on rank 0.
        telemetry: the records, which must reach the disk before a checkpoint does.
        ranks: this rank and its connection to the others.
        settle: called before a state is saved; it raises, alike on all ranks, if a step up to now
            was faulty.
    """

    def __init__(
        self,
        settings: CheckpointConfig,
        at: Snapshot,
        saver: Saver,
        telemetry: Telemetry,
        ranks: Session,
        settle: Callable[[], None],
    ) -> None:
        self.status: Status = "failed"
        """The status that :meth:`close` writes to state.json."""
        self._settings, self._at, self._saver = settings, at, saver
        self._telemetry, self._ranks, self._settle = telemetry, ranks, settle
        self._saved_step, self._saved_at = at.step, time.monotonic()

    def begin_to_save(self, state: dict[str, Any] | None = None) -> None:
        """Flush the records and begin to save, on rank 0; training continues meanwhile.

        A disk error on rank 0 is raised on all ranks in :meth:`go_on`.

        Args:
            state: of an earlier moment of this step; None: the present state.
        """
        self._settle()
        at = self._at
        if self._ranks.consensus.rank == 0:
            self._telemetry.flush()
            stall = self._saver.begin(at.step, state or at.state(), at.best_step)
            self._telemetry.scalars(at.step, {"checkpoint/stall_seconds": stall}, epoch=at.epoch)
        self._saved_step, self._saved_at = at.step, time.monotonic()

    def wait(self) -> None:
        """Wait until what is being saved is on the disk; a collective."""
        self._saver.wait()
        self._ranks.consensus.agree(self._saver.fault())

    def go_on(self, fault: RebiasError | None = None) -> None:
        """Save if that is due; save and leave if any rank was asked to leave; a collective.

        It is due after enough steps or, by rank 0's clock, enough minutes.

        Args:
            fault: an error of this rank; it is raised on all ranks.
        """
        every = self._settings.every_steps
        # All ranks count alike, so this comes first and a fault does not prevent it.
        if every and self._at.step % every == 0 and self._at.step > self._saved_step:
            self.begin_to_save()
        fault = fault or self._telemetry.fault or self._saver.fault()
        wish = _Wish.SAVE if self._is_late() else _Wish.GO_ON
        agreed = self._ranks.consensus.agree(fault, _Wish.LEAVE if self._ranks.stop else wish)
        if agreed != _Wish.GO_ON:
            self.begin_to_save()
        if agreed == _Wish.LEAVE:
            self._leave()

    @contextmanager
    def interruptible(
        self, *, save: bool = True, state: dict[str, Any] | None = None
    ) -> Iterator[None]:
        """Save and leave if the block, which raises alike on all ranks, is interrupted.

        For what goes through many samples between two steps. A resumed run begins it anew. What is
        due is saved after an evaluation, so that a resumed run need not repeat it.

        Args:
            save: save before. In the final evaluation everything is saved already, and the networks
                may be those of the best checkpoint, which must not be saved as the newest.
            state: what is saved, if the block may change the run; None: the present state.
        """
        try:
            yield
        except InterruptedRun:
            if save:
                self.begin_to_save(state)
            self._leave()

    def _is_late(self) -> bool:
        late = time.monotonic() - self._saved_at > 60 * self._settings.every_minutes
        return late and self._ranks.consensus.rank == 0 and self._at.step > self._saved_step

    def _leave(self) -> NoReturn:
        self.wait()
        raise InterruptedRun(
            f"interrupted; saved at step {self._at.step}; to continue, use the same command "
            f"with --name {self._at.config.name}"
        ) from None

    def close(self) -> None:
        """Wait until the checkpoint is written, and record how the run ended."""
        self._saver.wait()
        at = self._at
        self._telemetry.state(self.status, step=at.step, epoch=at.epoch, force=True)
        self._telemetry.close()
