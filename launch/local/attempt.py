"""One attempt at a run: a fresh torchrun, watched until none of its processes is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from launch.local.children import Child, kill_all, stopped_processes
from launch.record.exit_codes import read_codes

_LOOK = 0.2  # seconds between two looks at the processes
_STOPPED = 10.0  # seconds after which a stopped process counts as hanging
_KILLED = 30.0  # seconds that a killed process has to disappear in
_CHECKPOINT = re.compile(r"step-(\d{9})")


@dataclass
class Stop:
    """Requests that signals have brought; the launcher's handlers set them."""

    asked: bool = False
    now: bool = False


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt."""

    code: int
    """torchrun's exit code, negative for a signal."""
    ranks: dict[int, int] = field(default_factory=dict)
    """Exit codes of the ranks, without those that were killed."""
    began: bool = True
    """Whether the run has noted this attempt; before that it has nothing to save."""
    hang: str = ""
    """Reason for which the launcher killed the attempt, if it did."""
    detected: float = 0.0
    """Time of the end or of its detection, by the monotonic clock."""


def newest_checkpoint(run_folder: Path) -> int | None:
    """Return the step of a run's newest checkpoint, None before the first."""
    try:
        names = os.listdir(run_folder / "checkpoints")
    except OSError:
        return None
    matches = (_CHECKPOINT.fullmatch(name) for name in names)
    return max((int(match[1]) for match in matches if match), default=None)


class Attempt:
    """A running torchrun and all processes below it.

    Args:
        run_folder: of the run.
        ranks: processes on this machine.
        training: arguments of ``rebias_dist.train``.
        log: file to which the output of all ranks is appended.
    """

    def __init__(self, run_folder: Path, ranks: int, training: Sequence[str], log: Path) -> None:
        self._state = run_folder / "state.json"
        self._attempts = run_folder / "attempts.json"
        self._codes = run_folder / "launcher" / "codes"
        shutil.rmtree(self._codes, ignore_errors=True)
        self._codes.mkdir(parents=True)
        self._noted = _version(self._attempts)
        agent = [sys.executable, "-m", "launch.local.agent", f"--nproc-per-node={ranks}"]
        rank = ["-m", "launch.local.rank", str(self._codes.absolute())]
        self._torchrun = Child([*agent, *rank, *training], log, ranks, os.environ)
        self._asked: set[int] = set()
        self._stopped_since: dict[int, float] = {}
        self._heartbeat = _version(self._state)
        self._alive = time.monotonic()

    def watch(self, stop: Stop, hang_timeout: float, grace: float) -> Outcome:
        """Follow the attempt to its end; when this returns, none of its processes is left.

        Args:
            stop: read again and again.
            hang_timeout: seconds without a sign of life after which the attempt is killed.
            grace: seconds that the attempt has to save and leave when it is asked to.
        """
        deadline = float("inf")
        hang = ""
        try:
            while self._torchrun.poll() is None and not hang:
                time.sleep(_LOOK)
                now = time.monotonic()
                if stop.asked:
                    deadline = min(deadline, now + grace)
                    self._ask()
                if stop.now:
                    hang = "killed at the second request"
                elif now > deadline:
                    hang = f"killed: it did not leave within {grace:g} s"
                else:
                    hang = self._hang(now, hang_timeout)
            detected = time.monotonic()
        finally:
            left = self._kill()
        if left:
            hang = f"processes {', '.join(map(str, left))} cannot be killed"
        code = self._torchrun.returncode
        ranks = {int(rank): code for rank, code in read_codes(self._codes).items()}
        began = _version(self._attempts) != self._noted
        return Outcome(1 if code is None else code, ranks, began, hang, detected)

    def _kill(self) -> list[int]:
        """Kill what is left of the attempt; return the processes that cannot be killed."""
        self._torchrun.kill()
        try:
            self._torchrun.wait(_KILLED)
        except subprocess.TimeoutExpired:
            return [self._torchrun.pid]
        return kill_all(_KILLED)

    def _ask(self) -> None:
        """Ask each rank once to save and leave, as soon as it exists."""
        # The request does not go to torchrun: that kills ranks that need longer than its timeout.
        with suppress(psutil.NoSuchProcess):
            torchrun = psutil.Process(self._torchrun.pid)
            ranks = torchrun.children() or ([] if self._asked else [torchrun])
            for rank in ranks:
                if rank.pid not in self._asked:
                    self._asked.add(rank.pid)
                    rank.send_signal(signal.SIGTERM)

    def _hang(self, now: float, timeout: float) -> str:
        """Return the reason to think that the attempt hangs; empty if it is alive."""
        stopped = stopped_processes(self._torchrun.pid)
        self._stopped_since = {pid: self._stopped_since.get(pid, now) for pid in stopped}
        for pid, since in self._stopped_since.items():
            if now - since > _STOPPED:
                return f"process {pid} has been stopped for {_STOPPED:g} s"
        version = _version(self._state)
        if version != self._heartbeat:
            self._heartbeat, self._alive = version, now
        if now - self._alive > timeout:
            return f"no sign of life for {timeout:g} s"
        return ""


def _version(path: Path) -> tuple[int, int] | None:
    # The wall clock may jump, so times are only compared for being different.
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns
