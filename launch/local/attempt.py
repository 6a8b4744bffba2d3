"""One attempt at a run: a fresh torchrun, watched until nothing of it is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.local.processes import Process, descendants, kill_all, look_up
from launch.record.files import read_tail

_LOOK = 0.2  # seconds between two looks at the processes
_STOPPED = 10.0  # seconds after which a stopped process counts as hanging
_KILLED = 30.0  # seconds that a killed process has to disappear in
_CHECKPOINT = re.compile(r"step-(\d{9})")


@dataclass
class Stop:
    """What signals have asked for; set by the launcher's handlers."""

    asked: bool = False
    now: bool = False


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    code: int
    """torchrun's exit code, negative for a signal."""
    ranks: dict[int, int] = field(default_factory=dict)
    """Exit codes of the ranks; a rank that was killed is not in it."""
    began: bool = True
    """Whether the run has noted this attempt; before that it has nothing to save."""
    hang: str = ""
    """Why the launcher killed it, if it did."""
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
    """A torchrun under way, and all processes below it.

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
        self._log = log
        self._ranks = ranks
        shutil.rmtree(self._codes, ignore_errors=True)
        self._codes.mkdir(parents=True)
        self._noted = _version(self._attempts)
        torchrun = [
            f"--nproc-per-node={ranks}",
            "-m",
            "launch.local.rank",
            str(self._codes.absolute()),
        ]
        with log.open("ab") as output:
            self._shown = output.tell()
            self._torchrun = subprocess.Popen(
                [
                    *(sys.executable, "-m", "launch.local.agent", str(os.getpid())),
                    *torchrun,
                    *training,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(ranks),
                # A terminal's Ctrl-C and Ctrl-Z are the launcher's affair alone.
                start_new_session=True,
            )
        self._asked: set[int] = set()
        self._stopped_since: dict[int, float] = {}
        self._heartbeat: tuple[int, int] | None = _version(self._state)
        self._alive = time.monotonic()

    def watch(self, stop: Stop, hang_timeout: float, grace: float) -> Outcome:
        """Follow the attempt to its end; when this returns, none of its processes is left.

        Args:
            stop: looked at all the time.
            hang_timeout: seconds without a sign of life after which it is killed.
            grace: seconds that it has to save and leave when it is asked to.
        """
        deadline = float("inf")
        hang = ""
        try:
            while self._torchrun.poll() is None and not hang:
                time.sleep(_LOOK)
                self._show()
                below = descendants(self._torchrun.pid)
                now = time.monotonic()
                if stop.asked:
                    deadline = min(deadline, now + grace)
                    self._ask(below)
                if stop.now:
                    hang = "killed at the second request"
                elif now > deadline:
                    hang = f"killed: it did not leave within {grace:g} s"
                else:
                    hang = self._hang(below, now, hang_timeout)
            detected = time.monotonic()
        finally:
            left = self._kill()
        self._show()
        if left:
            hang = f"processes {', '.join(map(str, left))} cannot be killed"
        code = self._torchrun.returncode
        began = _version(self._attempts) != self._noted
        return Outcome(1 if code is None else code, self._exit_codes(), began, hang, detected)

    def _kill(self) -> list[int]:
        """Kill what is left of the attempt; return what cannot be killed."""
        self._torchrun.kill()
        try:
            self._torchrun.wait(_KILLED)
        except subprocess.TimeoutExpired:
            return [self._torchrun.pid]
        return kill_all(_KILLED)

    def _ask(self, below: list[Process]) -> None:
        """Ask the ranks to save and leave: each of them once, as soon as it is there."""
        # Not by way of torchrun, which would kill those that need longer than its own patience.
        ranks = [process.pid for process in below if process.parent == self._torchrun.pid]
        if not ranks and not self._asked:
            ranks = [self._torchrun.pid]
        for pid in ranks:
            if pid not in self._asked:
                self._asked.add(pid)
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    continue

    def _hang(self, below: list[Process], now: float, timeout: float) -> str:
        """Return why the attempt hangs, or nothing if it is alive."""
        states = {process.pid: process.state for process in below}
        torchrun = look_up(self._torchrun.pid)
        states[self._torchrun.pid] = torchrun.state if torchrun else "Z"
        stopped = [pid for pid, state in states.items() if state == "T"]
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

    def _show(self) -> None:
        """Copy to the terminal what the ranks have written since the last time."""
        with self._log.open("rb") as log:
            log.seek(self._shown)
            text = log.read()
        self._shown += len(text)
        if text:
            try:
                sys.stderr.buffer.write(text)
                sys.stderr.flush()
            except OSError:
                pass  # the terminal is gone; the file has it all

    def _exit_codes(self) -> dict[int, int]:
        found = {}
        for rank in range(self._ranks):
            text = (read_tail(self._codes / str(rank), 10) or b"").strip()
            if text.isdigit():
                found[rank] = int(text)
        return found


def _version(path: Path) -> tuple[int, int] | None:
    # The wall clock may jump, so times are only compared for being different.
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def _environment(ranks: int) -> dict[str, str]:
    """Return the environment of torchrun and its ranks, which no other machine can reach."""
    # Another run's place, as inside a batch job, is not this run's.
    given = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM_", "PMI", "PMIX_", "TORCHELASTIC_", "GROUP_"))
        and key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        and key not in ("MASTER_ADDR", "MASTER_PORT")
    }
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    given.setdefault("OMP_NUM_THREADS", str(threads))
    # The ranks' own connections.
    return {**given, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
