"""What there is to go on from: found by rank 0 on the disk, and told to all."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rebias_dist.config.schema import Config, FaultsConfig
from rebias_dist.errors import NonFiniteError, RolledBack
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.runs import checkpoint, results
from rebias_dist.runs.attempts import Attempts
from rebias_dist.runs.run_folder import RunFolder, open_run, refuse_changes
from rebias_dist.runs.snapshot import Snapshot

_log = logging.getLogger("rebias_dist")


@dataclass
class Resumption:
    """How a run stands on the disk."""

    step: int | None = None
    """Of the newest intact checkpoint; None for a run that has none yet."""
    finished: dict[str, Any] | None = None
    """Its results, if there is nothing left to do."""
    left_out: list[int] = field(default_factory=list)
    """Steps that are not taken any more, for they failed after a rollback, too."""
    changes: dict[str, str] = field(default_factory=dict)
    """What differs from the checkpoint, as overridden: 'key: old → new', by key."""
    damaged: list[str] = field(default_factory=list)
    """Checkpoints that were passed over, and why."""
    attempts: Attempts | None = None
    """On rank 0."""

    def warnings(self) -> list[str]:
        """Return what a user should know of how the run goes on."""
        return [
            *(
                f"passed over a damaged checkpoint: {line}; its folder is {checkpoint.DAMAGED}… now"
                for line in self.damaged
            ),
            *(f"changed in mid-run, as --resume-override says: {c}" for c in self.changes.values()),
        ]

    def stop_or_roll_back(
        self, text: str, step: int, faults: FaultsConfig, consensus: Consensus
    ) -> NoReturn:
        """Handle a gradient that is not finite as ``faults.non_finite`` says; a collective.

        Raises:
            NonFiniteError: the run is to stop.
            RolledBack: the run is to go on from its newest checkpoint.
        """
        if faults.non_finite != "rollback":
            raise NonFiniteError(text) from None
        _log.warning("%s; rolling back to the newest checkpoint", text)
        with consensus.together():
            if self.attempts is not None:
                self.attempts.roll_back(step, faults.non_finite_limit)
        raise RolledBack(text) from None


def resume_run(
    config: Config,
    run: Snapshot,
    folder: RunFolder,
    consensus: Consensus,
    *,
    resume: str,
    overrides: Collection[str],
    total_steps: int,
    held: ExitStack,
) -> Resumption:
    """Open the folder of a run and restore its newest intact checkpoint; a collective.

    What is on the disk is for rank 0 to say: another node may still see an earlier state of it.

    Args:
        config: with a name.
        run: receives the state.
        folder: of the run.
        consensus: of the ranks.
        resume: ``auto``, ``never`` or ``must``.
        overrides: keys that may have changed.
        total_steps: of the whole run.
        held: receives, on rank 0, the lock on the folder and the record of this attempt.

    Raises:
        ConfigError: the run may not be resumed so.
        DataError: no checkpoint is intact.
        CrashLoopError: restarts do not bring the run any further.
    """
    found = Resumption()
    state: dict[str, Any] | None = None
    with consensus.on_rank_zero() as leader:
        if leader:
            held.enter_context(open_run(config, resume, overrides))
            state, found.damaged = checkpoint.load_newest(folder.checkpoints)
            if state is not None:
                found.step = int(state["step"])
                found.changes = run.changes(state)
                refuse_changes(folder.path, found.changes, overrides)
                if found.damaged:
                    checkpoint.set_aside(folder.checkpoints, found.step)
                if found.step >= total_steps and folder.has_results:
                    found.finished = results.read(folder.results_file)
            if found.finished is None:
                # Of a run that goes on with more steps: they would pass for those of its new end.
                folder.results_file.unlink(missing_ok=True)
                found.attempts = Attempts(folder.path)
                found.left_out = found.attempts.left_out
                held.enter_context(
                    found.attempts.attempt(
                        found.step or 0, config.faults.restarts, lambda: run.step
                    )
                )
    found.step, found.finished, found.left_out, found.changes = consensus.broadcast(
        [found.step, found.finished, found.left_out, found.changes]
    )
    with consensus.together():
        if found.step is not None and found.finished is None:
            run.restore(state or checkpoint.load(folder.checkpoints, found.step))
    return found
