"""Attempts, one after the other, until a run is finished, refused, given up or told to stop.

Every attempt is a fresh torchrun, which goes on from the newest checkpoint. torchrun's own
restarts are not used: they keep the rendezvous of the failed attempt, and often hang.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.system.files import HeldError, hold, write_synced
from data_shards.system.processes import adopt_orphans
from data_shards.system.signals import on_stop_signals
from launch.local.attempt import Attempt, Outcome, Stop, newest_checkpoint
from launch.local.relay import Relay
from launch.record.exit_codes import final_code
from launch.record.locks import launcher_lock
from rebias_dist.errors import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_GIVE_UP,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    ConfigError,
    RebiasError,
)

_LONGEST_PAUSE = 60.0  # seconds
_PROBE = 1 << 20  # bytes; a disk that is almost full may still take a few


@dataclass(frozen=True)
class Limits:
    """When the supervisor restarts, kills or gives up."""

    max_restarts: int
    """Restarts in all."""
    fruitless: int
    """Restarts in a row without a newer checkpoint."""
    hang_timeout: float
    """Seconds without a sign of life."""
    grace: float
    """Seconds to save and leave in."""


@contextmanager
def ownership(run_folder: Path) -> Iterator[None]:
    """Lock a run against other supervisors; the kernel unlocks it however this process ends.

    Raises:
        ConfigError: another supervisor holds it.
    """
    path = launcher_lock(run_folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = hold(path, "launcher")
    except HeldError as holder:
        raise ConfigError(
            f"name: {holder} supervises the run {run_folder}; stop it, or choose another name"
        ) from None
    except OSError as error:
        raise ConfigError(f"runs_dir: {path} cannot be written: {error.strerror}") from None
    with lock:
        yield


class Supervisor:
    """Runs the attempts of one run, one after the other.

    Args:
        run_folder: of the run; this process owns it.
        ranks: processes on this machine.
        training: arguments of ``rebias_dist.train``.
        limits: when to restart, kill or give up.
    """

    def __init__(
        self, run_folder: Path, ranks: int, training: Sequence[str], limits: Limits
    ) -> None:
        self._folder = run_folder
        self._ranks = ranks
        self._training = training
        self._limits = limits
        self._stop = Stop()
        self._logs = run_folder / "logs"
        self._output = self._logs / "output.log"

    def run(self) -> int:
        """Supervise the run to its end; return the exit code."""
        adopt_orphans()
        with on_stop_signals(self._receive):
            try:
                self._logs.mkdir(parents=True, exist_ok=True)
                with closing(Relay(self._output)) as self._relay:
                    return self._attempts()
            except OSError as error:
                raise RebiasError(
                    f"{self._folder}: cannot be written ({error.strerror or error}); when it can, "
                    "'rebias-launch resume' goes on from here"
                ) from None

    def _attempts(self) -> int:
        restarts = fruitless = 0
        while True:
            before = newest_checkpoint(self._folder)
            self._event("start", attempt=restarts + 1, checkpoint=before)
            # With --resume=never the run had to be new at its launch, but not at a restart.
            training = [*self._training, *(["--resume=auto"] if restarts else [])]
            attempt = Attempt(self._folder, self._ranks, training, self._output)
            outcome = attempt.watch(self._stop, self._limits.hang_timeout, self._limits.grace)
            code = self._judge(outcome)
            after = newest_checkpoint(self._folder)
            self._event("end", code=code, checkpoint=after, **_facts(outcome))
            if code is not None:
                self._say(_FAREWELLS.get(code, "failed"), outcome)
                return code
            self._check_disk()
            fruitless = 0 if after != before else fruitless + 1
            restarts += 1
            reason = ""
            if fruitless > self._limits.fruitless:
                reason = f"{fruitless} attempts in a row have brought no newer checkpoint"
            elif restarts > self._limits.max_restarts:
                reason = f"{self._limits.max_restarts} restarts are the limit (--max-restarts)"
            if reason:
                self._say(f"giving up: {reason}", outcome)
                self._event("give up", reason=reason)
                return EXIT_GIVE_UP
            pause = 0.0 if _was_preempted(outcome) else min(_LONGEST_PAUSE, 2.0**fruitless)
            where = "the start" if after is None else f"step {after}"
            self._say(f"restart {restarts} from {where} in {pause:g} s", outcome)
            if self._interrupted_within(pause):
                self._event("end", code=EXIT_INTERRUPTED, checkpoint=after)
                return EXIT_INTERRUPTED

    def _receive(self, number: int, frame: object) -> None:
        # A second Ctrl-C ends the run at once. A second signal of another kind does not, because a
        # scheduler warns first and terminates later.
        if self._stop.asked and number == signal.SIGINT:
            self._stop.now = True
        self._stop.asked = True

    def _judge(self, outcome: Outcome) -> int | None:
        """Return the launcher's exit code, or None if another attempt follows."""
        codes = set(outcome.ranks.values())
        final = final_code(codes, outcome.code)
        if final is None and self._stop.asked:
            # An attempt that has not begun to train has nothing to save.
            saved = EXIT_INTERRUPTED in codes or not outcome.began
            return EXIT_INTERRUPTED if saved and not outcome.hang else EXIT_FAILED
        return final

    def _interrupted_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._stop.asked and time.monotonic() < end:
            time.sleep(0.1)
        return self._stop.asked

    def _say(self, text: str, outcome: Outcome) -> None:
        """Tell the user what happens next, and why."""
        why = f" ({_cause(outcome)})" if _cause(outcome) else ""
        self._relay.say(f"rebias-launch: {self._folder.name}: {text}{why}")

    def _check_disk(self) -> None:
        """Raise OSError if the folder cannot be written: then no attempt can succeed or say why."""
        probe = self._folder / "launcher" / "probe"
        write_synced(probe, bytes(_PROBE))
        probe.unlink()

    def _event(self, event: str, **facts: Any) -> None:
        """Add a line to the launcher's own log."""
        line = {"event": event, "time": time.time(), "monotonic": time.monotonic(), **facts}
        with (self._logs / "launcher.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


_FAREWELLS = {
    EXIT_FINISHED: "finished",
    EXIT_USAGE: "refused; a restart cannot help",
    EXIT_GIVE_UP: "given up; a restart cannot help",
    EXIT_INTERRUPTED: "interrupted; 'rebias-launch resume' goes on from here",
}


def _was_preempted(outcome: Outcome) -> bool:
    """Return whether the ranks saved and left without a request of this launcher."""
    return EXIT_INTERRUPTED in outcome.ranks.values()


def _cause(outcome: Outcome) -> str:
    if outcome.hang:
        return outcome.hang
    if outcome.code == 0:
        return ""
    if outcome.code < 0:
        return f"torchrun ended by {signal.Signals(-outcome.code).name}"
    codes = ", ".join(f"rank {rank}: {code}" for rank, code in sorted(outcome.ranks.items()))
    return f"exit codes {codes}" if codes else "the ranks were killed or left no exit code"


def _facts(outcome: Outcome) -> dict[str, Any]:
    facts = asdict(outcome)
    return {"torchrun": facts.pop("code"), **facts}
