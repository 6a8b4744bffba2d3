"""Start a run again with the command that started it: here under the supervisor, or through SLURM.

It goes on from its newest checkpoint. The command lies in the run's folder. A run that was started
without rebias-launch goes on under the supervisor, with the same number of ranks.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from launch.commands import local, slurm
from launch.commands.common import add_name
from launch.record.command_line import CommandLine, read_command_line
from launch.record.reading import read_state
from launch.record.runs import refuse_if_active, run_folder
from rebias_dist.commands.parser import OneLineParser
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
    folder = run_folder(arguments.runs_dir, arguments.name).absolute()
    refuse_if_active(folder)
    launched = read_command_line(folder) or _by_hand(folder)
    # Relative paths of the command line, such as that of a configuration, start from there.
    with suppress(OSError):
        os.chdir(launched.cwd)
    # The given configuration file may have been changed or removed since.
    kept = folder / "config.yaml"
    config = str(kept) if kept.is_file() else launched.config
    # The folder may have been moved since.
    words = [config, *launched.options, f"--name={folder.name}", f"--runs-dir={folder.parent}"]
    command = local if launched.kind == "local" else slurm
    parser = OneLineParser(prog=f"rebias-launch {launched.kind}")
    command.add_arguments(parser)
    again: argparse.Namespace = parser.parse_args(words)
    again.rest = launched.rest
    code: int = command.run(again)
    return code


def _by_hand(folder: Path) -> CommandLine:
    """Return the command for a run that was started without a launcher, or by an unknown one."""
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{folder}: has no launch record and no config.yaml")
    ranks = read_state(folder).get("world_size")
    known = isinstance(ranks, int) and not isinstance(ranks, bool) and ranks > 0
    return CommandLine("local", str(config), [f"--ranks={ranks}"] if known else [])
