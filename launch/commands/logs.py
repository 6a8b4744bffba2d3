"""Print the log of a run, or follow it until the run ends.

Each rank has a log of its own. What the ranks print besides (warnings, tracebacks) is shown with
--output: that of all ranks together, and of all attempts.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import stat
import sys
import time
from pathlib import Path
from typing import BinaryIO

from launch.commands.common import add_name
from launch.record.folders import ACTIVE, look_at, run_folder
from rebias_dist.errors import EXIT_FINISHED, ConfigError

EXAMPLES = """
rebias-launch logs first
rebias-launch logs first -f --rank 1
rebias-launch logs first --output -n 100
"""

_LOOK = 0.5  # seconds between two looks at a file that is followed
_CHUNK = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``logs``."""
    add_name(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, default=0, metavar="R", help="whose log [0]")
    which.add_argument("--output", action="store_true", help="all that the ranks have printed")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="only the last N lines [all]")


def run(arguments: argparse.Namespace) -> int:
    """Print a log."""
    # The reader may leave early, as head does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    folder = run_folder(arguments.runs_dir, arguments.name)
    if arguments.lines is not None and arguments.lines < 0:
        raise ConfigError(f"--lines: {arguments.lines} is too few; use 0 or more")
    path = _choose(folder, arguments.rank, arguments.output)
    with _open(path) as file:
        if arguments.lines is not None:
            _skip_to_last(file, arguments.lines)
        _copy(file)
        try:
            while arguments.follow:
                # The last lines of a run come before its end is seen.
                (found,) = look_at([folder])
                _copy(file)
                if found.status not in ACTIVE:
                    print(f"({found.name}: {found.status})", file=sys.stderr)
                    break
                time.sleep(_LOOK)
        except KeyboardInterrupt:
            print()
    return EXIT_FINISHED


def _choose(folder: Path, rank: int, output: bool) -> Path:
    logs = folder / "logs"
    try:
        names = os.listdir(logs)
    except OSError:
        names = []
    if output:
        jobs = [name for name in names if re.fullmatch(r"slurm-[0-9_]+\.out", name)]
        newest = max(jobs, key=lambda name: (logs / name).lstat().st_mtime, default="output.log")
        path = logs / ("output.log" if "output.log" in names else newest)
        if path.name not in names:
            raise ConfigError(f"{path}: the run was started by hand; its terminal had the output")
        return path
    path = logs / f"rank{rank}.log"
    if path.name not in names:
        ranks = sorted(int(m[1]) for m in (re.fullmatch(r"rank(\d+)\.log", n) for n in names) if m)
        known = f"there are those of {', '.join(map(str, ranks))}" if ranks else "there is none yet"
        raise ConfigError(f"--rank: no log of rank {rank} in {logs}; {known}")
    return path


def _open(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def _skip_to_last(file: BinaryIO, lines: int) -> None:
    """Go to the begin of the last ``lines`` lines."""
    position = file.seek(0, os.SEEK_END)
    # The newline that ends the last line begins no other.
    missing = lines + 1
    while position > 0:
        begin = max(0, position - _CHUNK)
        file.seek(begin)
        chunk = file.read(position - begin)
        if position == file.tell() and not chunk.endswith(b"\n") and missing == lines + 1:
            missing -= 1
        for place in range(len(chunk) - 1, -1, -1):
            if chunk[place] == 0x0A:
                missing -= 1
                if missing <= 0:
                    file.seek(begin + place + 1)
                    return
        position = begin
    file.seek(0)


def _copy(file: BinaryIO) -> None:
    """Print from here to the present end; no control characters reach the terminal."""
    while chunk := file.read(_CHUNK):
        text = chunk.decode("utf-8", errors="replace")
        print("".join(c for c in text if c.isprintable() or c in "\n\t"), end="", flush=True)
