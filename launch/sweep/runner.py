"""Running cells on this machine: each on its share of it, with a log, stopped gently."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from data_shards.system.signals import on_stop_signals
from launch.local.children import Child
from launch.record.display import duration
from launch.record.reading import printable
from launch.sweep.grid import Cell
from launch.sweep.results_csv import note_commit
from rebias_dist.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError, InterruptedRun
from rebias_dist.ranks.placement import visible_gpus

_LARGEST = 10_000_000  # bytes of a command's output that are searched for warnings
_TAIL = 15  # lines shown of a command's warnings, and of a failed command's output


@dataclass(frozen=True)
class Share:
    """The part of the machine that a command may use."""

    cores: frozenset[int]
    gpus: str | None = None
    """Value of CUDA_VISIBLE_DEVICES; None leaves it unchanged."""


def shares(jobs: int, ranks: int) -> list[Share]:
    """Divide this machine's cores, and its GPUs if it has any, among commands.

    Args:
        jobs: commands at a time.
        ranks: processes of each.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    cores = sorted(os.sched_getaffinity(0))
    if jobs == 1:
        return [Share(frozenset(cores))]
    gpus = visible_gpus()
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


class CellRunner:
    """Runs commands one by one, and passes the first request to stop on to the running one.

    Args:
        share: part of the machine for the commands; None for all of it.
        live: show a command while it runs; for one runner at a time.
    """

    def __init__(self, share: Share | None = None, live: bool = True) -> None:
        self.stopping = False
        self._share = share or shares(1, 1)[0]
        self._live = live
        self._child: Child | None = None

    def stop(self) -> None:
        """Ask the running command to save and leave, and start no other."""
        # Only once: a second SIGINT would cut short the save that the first one asked for.
        if not self.stopping and self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
        self.stopping = True

    def run(self, command: Sequence[str], ranks: int, log: Path, title: str) -> int:
        """Run a command of so many processes to its end and return its exit code.

        Its output is appended to ``log``. A terminal shows the last line of it. Its warnings are
        shown at its end.
        """
        gpus = self._share.gpus
        environment = {
            # Seconds to save in, before torchrun kills a rank that was asked to stop.
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",
            **os.environ,
            **({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}),
        }
        begin = time.monotonic()
        # The cores of this thread are inherited by the new process.
        os.sched_setaffinity(0, self._share.cores)
        child = self._child = Child(command, log, ranks, environment)
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
                    _show_progress(title, time.monotonic() - begin, _last_lines(child))
        if terminal:
            print(f"\r\x1b[K{title}", end=" ")
        verdict = "finished" if code == 0 else "stopped" if self.stopping else f"exit code {code}"
        opening = "" if self._live else f"{title} "
        print(f"{opening}{verdict} in {duration(time.monotonic() - begin)}", flush=True)
        failed = code != 0 and not self.stopping
        for line in [*_warnings(child), *(_last_lines(child)[-_TAIL:] if failed else [])]:
            print(f"    {line}", flush=True)
        return code


def run_cells(cells: Sequence[Cell], command: str, jobs: int = 1) -> int:
    """Run the cells that are not finished; return 0, or 1 if any failed.

    Args:
        cells: of a sweep.
        command: command that continues the sweep, for the message.
        jobs: cells that run at a time, each on its share of the machine.

    Raises:
        InterruptedRun: a signal came, and the running cells have saved and left.
        ConfigError: there are not enough GPUs.
    """
    jobs = min(jobs, len(cells))
    dealt = shares(jobs, max(cell.ranks for cell in cells))
    runners = [CellRunner(share, live=jobs == 1) for share in dealt]

    def stop(number: int, frame: object) -> None:
        for runner in runners:
            runner.stop()

    free: SimpleQueue[CellRunner] = SimpleQueue()
    for runner in runners:
        free.put(runner)
    width = max(len(cell.name) for cell in cells)

    def work(index: int, cell: Cell) -> str | None:
        """Run a cell; return why it failed, if it did."""
        runner = free.get()
        try:
            title = f"[{index}/{len(cells)}] {cell.name:{width}}"
            if runner.stopping:
                return None
            if cell.is_finished():
                print(f"{title} finished before", flush=True)
                return None
            note_commit(cell.commits)
            code = runner.run(cell.bound_command, cell.ranks, cell.log, title)
            # The folder decides, not the exit code, so that a repeated sweep judges alike.
            if runner.stopping or cell.is_finished():
                return None
            return f"{cell.name}: exit code {code}, not finished; see {cell.log}"
        finally:
            free.put(runner)

    with on_stop_signals(stop), ThreadPoolExecutor(jobs) as pool:
        # Cells inherit what is ignored, and a request to stop reaches them as SIGINT.
        signal.signal(signal.SIGINT, stop)
        failed = [text for text in pool.map(work, range(1, len(cells) + 1), cells) if text]
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    if any(runner.stopping for runner in runners) and not all(c.is_finished() for c in cells):
        raise InterruptedRun(f"stopped; the same command goes on from here: {command}")
    return EXIT_FAILED if failed else EXIT_FINISHED


def _last_lines(child: Child) -> list[str]:
    """Return the last printable lines of a child's output."""
    return _lines(child.last_output(20_000))


def _warnings(child: Child) -> list[str]:
    """Return the warnings of a child without their times, and the number of those left out."""
    output = child.last_output(_LARGEST).split(b"\n")
    found = _lines(b"\n".join(line for line in output if b" WARNING " in line))
    told = [line.partition(" WARNING ")[2] for line in found]
    more = [f"and {len(told) - _TAIL} more"] if len(told) > _TAIL else []
    return [f"warning: {text}" for text in [*told[:_TAIL], *more]]


def _lines(output: bytes) -> list[str]:
    # A progress bar redraws its line after a carriage return. Colours are left out.
    text = re.sub(rb"\x1b\[[0-9;]*[A-Za-z]", b"", output)
    lines = printable(text.replace(b"\r", b"\n")).split("\n")
    return [line for line in lines if line.strip()]


def _show_progress(title: str, seconds: float, lines: list[str]) -> None:
    last = re.sub(r"^\S+ \S+ INFO ", "", lines[-1]) if lines else "starting"  # without its time
    text = f"{title} {duration(seconds)}  {last}"
    print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
