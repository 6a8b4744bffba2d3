"""Show one run: on a terminal live until the run ends, otherwise once."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from launch.commands.common import add_name
from launch.record.display import accuracy, duration, steps, where
from launch.record.reading import printable, read_tail
from launch.record.runs import ACTIVE, Run, look_at, run_folder
from rebias_dist.errors import EXIT_FINISHED, ConfigError

EXAMPLES = """
rebias-launch status first
rebias-launch status first --once --json
"""

_BAR = 40  # characters
_LOG_LINES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``status``."""
    add_name(parser)
    parser.add_argument("--once", action="store_true", help="show it once")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time between updates [1]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the run's state."""
    if not 0.1 <= arguments.interval <= 3600:
        raise ConfigError(f"--interval: {arguments.interval:g} is out of range; use 0.1 to 3600")
    folder = run_folder(arguments.runs_dir, arguments.name)
    (found,) = look_at([folder])
    if arguments.json:
        print(found.to_json())
        return EXIT_FINISHED
    text = _describe(found, folder)
    print(text, flush=True)
    live = sys.stdout.isatty() and not arguments.once
    try:
        while live and found.status in ACTIVE:
            time.sleep(arguments.interval)
            (found,) = look_at([folder])
            lines = text.count("\n") + 1
            text = _describe(found, folder)
            # Go back to the first line and clear everything below.
            print(f"\x1b[{lines}F\x1b[J{text}", flush=True)
    except KeyboardInterrupt:
        print()
    return EXIT_FINISHED


def _describe(run: Run, folder: Path) -> str:
    facts = {
        "run": f"{run.name} ({run.folder})",
        "status": run.status,
        "method": run.method or "–",
        "progress": _bar(run),
        "epoch": "–" if run.epoch is None else str(run.epoch),
        "speed": "–" if run.images_per_s is None else f"{run.images_per_s:.4g} images/s",
        "ETA": duration(run.eta_seconds),
        "accuracy": accuracy(run),
        "where": where(run) + "".join(_processes(run)),
        "last news": f"{duration(run.age_seconds)} ago" if run.age_seconds is not None else "–",
    }
    lines = [f"{key:10} {value}" for key, value in facts.items()]
    tail = printable(read_tail(folder / "logs" / "rank0.log", 4000) or b"").split("\n")
    lines += [f"  | {line[:110]}" for line in tail if line.strip()][-_LOG_LINES:]
    return "\n".join(lines)


def _processes(run: Run) -> list[str]:
    named = {"launcher": run.launcher_pid, "rank 0": run.trainer_pid}
    return [f", {name} is process {pid}" for name, pid in named.items() if pid is not None]


def _bar(run: Run) -> str:
    if run.step is None or not run.total_steps:
        return "–"
    share = min(max(run.step / run.total_steps, 0.0), 1.0)
    full = int(share * _BAR)
    return f"[{'#' * full}{'.' * (_BAR - full)}] {steps(run)} ({share:.0%})"
