"""Print the log of a run, or follow it until the run ends.

Each rank has its own log. Everything else that the ranks print, such as warnings and tracebacks, is
in one file for all ranks and attempts; --output shows that.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from data_shards.system.streams import reader_left
from launch.commands.common import add_name
from launch.record.reading import open_regular, printable
from launch.record.runs import ACTIVE, look_at, run_folder
from rebias_dist.errors import EXIT_FINISHED, ConfigError

EXAMPLES = """
rebias-launch logs first
rebias-launch logs first -f --rank 1
rebias-launch logs first --output -n 100
"""

_LOOK = 0.5  # seconds between two looks at a file that is followed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``logs``."""
    add_name(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="continue until the run ends")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, default=0, metavar="R", help="rank of the log [0]")
    which.add_argument("--output", action="store_true", help="all that the ranks printed")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="only the last N lines [all]")


def run(arguments: argparse.Namespace) -> int:
    """Print a log."""
    folder = run_folder(arguments.runs_dir, arguments.name)
    if arguments.lines is not None and arguments.lines < 0:
        raise ConfigError(f"--lines: {arguments.lines} is too few; use 0 or more")
    path = _choose(folder, arguments.rank, arguments.output)
    try:
        file = open_regular(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        _copy(file if arguments.lines is None else deque(file, maxlen=arguments.lines))
        try:
            while arguments.follow and not reader_left():
                # Look at the state before copying, so that the last lines are not missed.
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


def _copy(lines: Iterable[bytes]) -> None:
    """Print lines without control characters, which a terminal obeys."""
    for line in lines:
        print(printable(line), end="")
        if reader_left():  # as head does
            break
    sys.stdout.flush()
