"""Resuming a run: rank 0 looks for the newest checkpoint on the disk and tells the other ranks."""

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
    """The state of a run on the disk."""

    step: int | None = None
    """Step of the newest intact checkpoint; None for a run without one."""
    finished: dict[str, Any] | None = None
    """The run's results if it is finished."""
    left_out: list[int] = field(default_factory=list)
    """Steps that are skipped because they failed again after a rollback."""
    changes: dict[str, str] = field(default_factory=dict)
    """Overridden differences from the checkpoint: 'key: old → new', by key."""
    anew: list[str] = field(default_factory=list)
    """What begins anew after such a change; alike on all ranks."""
    damaged: list[str] = field(default_factory=list)
    """Checkpoints that were passed over, and why."""
    attempts: Attempts | None = None
    """On rank 0; None on the others."""

    def warnings(self) -> list[str]:
        """Return the warnings for the user: damaged checkpoints, and changes with their effect."""
        lines = [
            f"passed over a damaged checkpoint: {line}; its folder is now {checkpoint.DAMAGED}…"
            for line in self.damaged
        ]
        lines += [f"changed in mid-run by --resume-override: {c}" for c in self.changes.values()]
        return lines + self.anew

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

    Only rank 0 looks at the disk, because another node may still see an earlier state of it.

    Args:
        config: with a name.
        run: receives the state.
        folder: of the run.
        consensus: the ranks.
        resume: ``auto``, ``never`` or ``must``.
        overrides: keys of the configuration that may have changed.
        total_steps: of the whole run.
        held: receives, on rank 0, the lock on the folder and the record of this attempt.

    Raises:
        ConfigError: ``resume`` forbids it, the configuration has changed, or another process has
            the lock.
        DataError: there are checkpoints, but none is intact.
        CrashLoopError: too many attempts in a row crashed after the same checkpoint.
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
                # A finished run may go on with more epochs; its old results would be taken for new.
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
            found.anew = run.restore(state or checkpoint.load(folder.checkpoints, found.step))
    return found
