"""Process groups: start one on its share of the machine, follow its log, stop it gently."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.sweep.grid import Cell
from launch.sweep.table import note_commit
from rebias_dist.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError, InterruptedRun

_TAIL = 15  # lines of a failed command's output that are shown
# A batch system warns whole process groups with SIGUSR2, of which torchrun would die.
_SHIELD = ["/bin/sh", "-c", "trap '' USR2; exec \"$@\"", "cell"]


@dataclass(frozen=True)
class Share:
    """What of the machine a command may use."""

    cores: frozenset[int]
    gpus: str | None = None
    """For CUDA_VISIBLE_DEVICES; None leaves it as it is."""


def shares(jobs: int, ranks: int) -> list[Share]:
    """Deal this machine's cores, and its GPUs if it has any, to so many commands at a time.

    Args:
        jobs: commands at a time.
        ranks: processes of each.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    cores = sorted(os.sched_getaffinity(0))
    if jobs == 1:
        return [Share(frozenset(cores))]
    gpus = _gpus()
    each = len(gpus) // jobs
    if gpus and each < ranks:
        raise ConfigError(
            f"--jobs: {jobs} at a time with {ranks} ranks need {jobs * ranks} GPUs, and there are "
            f"{len(gpus)}; use fewer jobs or ranks"
        )
    return [
        Share(
            frozenset(cores[job % len(cores) :: jobs]),
            ",".join(gpus[job * each : (job + 1) * each]) if gpus else None,
        )
        for job in range(jobs)
    ]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


class CellRunner:
    """Runs commands one by one; hands on the first request to stop to the one under way.

    Args:
        share: what the commands may use; None for the whole machine.
        live: show a command while it runs; for one runner at a time.
    """

    def __init__(self, share: Share | None = None, live: bool = True) -> None:
        """Start with nothing under way."""
        self.stopping = False
        self._share = share or shares(1, 1)[0]
        self._live = live
        self._child: subprocess.Popen[bytes] | None = None

    def handle_signals(self) -> None:
        """Take over the signals that ask this process to end."""
        handle_signals([self])

    def stop(self) -> None:
        """Ask the command under way to save and leave, and start no other."""
        # Once only: a second SIGINT would cut short the save that the first one asked for.
        if not self.stopping and self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
        self.stopping = True

    def run(self, command: Sequence[str], processes: int, log: Path, title: str) -> int:
        """Run a command of so many processes to its end and return its exit code.

        Its output is appended to ``log``; on a terminal, the last line of it is shown.
        """
        # As many threads as the processes can have without taking each other's cores; and time
        # to save before torchrun kills a process that was asked to stop (30 s otherwise).
        threads = max(1, len(self._share.cores) // processes)
        defaults = {"OMP_NUM_THREADS": str(threads), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}
        begin = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            start = file.tell()
            # Of this thread, from which the new process inherits it.
            os.sched_setaffinity(0, self._share.cores)
            child = self._child = subprocess.Popen(
                [*_SHIELD, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**defaults, **os.environ, **self._own_gpus()},
                start_new_session=True,  # else a terminal's Ctrl-C reaches it beside ours
            )
        if self.stopping:  # the signal came while the process was being made
            child.send_signal(signal.SIGINT)
        terminal = self._live and sys.stdout.isatty()
        if self._live:
            print(title, end=" ", flush=True)
        while True:
            try:
                code = child.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if terminal:
                    _show_progress(title, time.monotonic() - begin, _last_lines(log, start))
        if terminal:
            print(f"\r\x1b[K{title}", end=" ")
        verdict = "finished" if code == 0 else "stopped" if self.stopping else f"exit code {code}"
        opening = "" if self._live else f"{title} "
        print(f"{opening}{verdict} in {_duration(time.monotonic() - begin)}", flush=True)
        if code != 0 and not self.stopping:
            for line in _without_launcher(_last_lines(log, start))[-_TAIL:]:
                print(f"    {line}", flush=True)
        return code

    def _own_gpus(self) -> dict[str, str]:
        gpus = self._share.gpus
        return {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}


def handle_signals(runners: Sequence[CellRunner]) -> None:
    """Take over the signals that ask this process to end: Ctrl-C, kill, a closed terminal.

    And SIGUSR2, with which a batch system warns of its time limit.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for runner in runners:
            runner.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, stop)


def run_cells(cells: Sequence[Cell], command: str, jobs: int = 1) -> int:
    """Run the cells that are not finished; return 0, or 1 when any failed.

    Args:
        cells: of a sweep.
        command: that continues it, for the message.
        jobs: cells that run at a time, each on its share of the machine.

    Raises:
        InterruptedRun: a signal came, and the cells under way have saved and left.
        ConfigError: there are not enough GPUs.
    """
    jobs = min(jobs, len(cells))
    dealt = shares(jobs, max(cell.ranks for cell in cells))
    runners = [CellRunner(share, live=jobs == 1) for share in dealt]
    handle_signals(runners)
    todo = iter(list(enumerate(cells, 1)))
    taking = threading.Lock()
    failed: dict[int, str] = {}
    width = max(len(cell.name) for cell in cells)

    def work(runner: CellRunner) -> None:
        while not runner.stopping:
            with taking:
                index, cell = next(todo, (0, None))
            if cell is None:
                return
            title = f"[{index}/{len(cells)}] {cell.name:{width}}"
            if cell.is_finished():
                print(f"{title} finished before", flush=True)
                continue
            note_commit(cell.code)
            code = runner.run(cell.bound_command, cell.ranks, cell.log, title)
            # The folder decides, not the exit code, so that a repeated sweep judges alike.
            if not runner.stopping and not cell.is_finished():
                failed[index] = f"{cell.name}: exit code {code}, not finished; see {cell.log}"

    if jobs == 1:
        work(runners[0])
    else:
        threads = [threading.Thread(target=work, args=[runner]) for runner in runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index in sorted(failed):
        print(f"failed: {failed[index]}", file=sys.stderr)
    if any(runner.stopping for runner in runners) and not all(c.is_finished() for c in cells):
        raise InterruptedRun(f"stopped; the same command goes on from here: {command}")
    return EXIT_FAILED if failed else EXIT_FINISHED


def _last_lines(log: Path, start: int) -> list[str]:
    """Return the last printable lines that were written to a log since byte ``start``."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 20_000))
        text = file.read().decode("utf-8", "replace")
    # A progress bar redraws its line after a carriage return; colours have no place here.
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = ("".join(filter(str.isprintable, line)) for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line.strip()]


def _without_launcher(lines: list[str]) -> list[str]:
    """Cut off torchrun's own traceback, which says only that a rank failed, not why."""
    ends = (i for i, line in enumerate(lines) if re.match(r"E\d{4} .*failed \(exitcode", line))
    return lines[: next(ends, len(lines))]


def _show_progress(title: str, seconds: float, lines: list[str]) -> None:
    text = f"{title} {_duration(seconds)}  {lines[-1] if lines else 'starting'}"
    print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
