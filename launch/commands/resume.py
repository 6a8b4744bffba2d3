"""Start a run again as it was started: here under the supervisor, or through SLURM.

It goes on from its newest checkpoint. How it was started lies in its folder; a run that was
started without rebias-launch goes on under the supervisor, with as many ranks as it had.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from launch.commands.common import add_name
from launch.record.files import read_json
from launch.record.folders import refuse_if_active, run_folder
from launch.record.launch_record import Record, read_record
from rebias_dist.errors import ConfigError

EXAMPLES = """
rebias-launch resume first
nohup rebias-launch resume first > /dev/null 2>&1 &
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``resume``."""
    add_name(parser)


def run(arguments: argparse.Namespace) -> int:
    """Launch the run again."""
    from launch.__main__ import main

    folder = run_folder(arguments.runs_dir, arguments.name).absolute()
    refuse_if_active(folder)
    record = read_record(folder) or _by_hand(folder)
    # Relative paths of the command line, such as that of a configuration, start there.
    with contextlib.suppress(OSError):
        os.chdir(record.cwd)
    # The folder may have been moved since.
    placed = [*record.options, f"--name={folder.name}", f"--runs-dir={folder.parent}"]
    words = Record(record.kind, record.config, placed, record.rest).arguments(folder)
    return main(words)


def _by_hand(folder: Path) -> Record:
    """Return how to go on with a run that was started without a launcher, or by an unknown one."""
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{folder}: says neither how it was launched nor what it trains")
    ranks = (read_json(folder / "state.json") or {}).get("world_size")
    known = isinstance(ranks, int) and not isinstance(ranks, bool) and ranks > 0
    return Record("local", str(config), [f"--ranks={ranks}"] if known else [])
