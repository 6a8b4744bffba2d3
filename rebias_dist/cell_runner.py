"""One process group after the other: start it, follow its log, stop it gently."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_TAIL = 15  # lines of a failed command's output that are shown


class CellRunner:
    """Runs commands one by one; hands on the first request to stop to the one under way."""

    def __init__(self) -> None:
        """Start with nothing under way."""
        self.stopping = False
        self._child: subprocess.Popen[bytes] | None = None

    def handle_signals(self) -> None:
        """Take over the signals that ask this process to end (Ctrl-C, kill, a closed terminal)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
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
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        defaults = {"OMP_NUM_THREADS": str(threads), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}
        begin = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            start = file.tell()
            child = self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**defaults, **os.environ},
                start_new_session=True,  # else a terminal's Ctrl-C reaches it beside ours
            )
        if self.stopping:  # the signal came while the process was being made
            child.send_signal(signal.SIGINT)
        terminal = sys.stdout.isatty()
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
        print(f"{verdict} in {_duration(time.monotonic() - begin)}", flush=True)
        if code != 0 and not self.stopping:
            for line in _without_launcher(_last_lines(log, start))[-_TAIL:]:
                print(f"    {line}", flush=True)
        return code


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
