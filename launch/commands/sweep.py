"""The command ``rebias-sweep``, also ``python -m launch.commands.sweep``.

The same command continues a sweep: it skips finished cells, and a cell that was interrupted goes
on from its checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.commands.common import add_set, split_rest, split_settings
from launch.sweep.array import submit_sweep
from launch.sweep.grid import Cell, Sweep, plan_cells, read_sweep
from launch.sweep.results_csv import write_table
from launch.sweep.runner import run_cells
from rebias_dist import version
from rebias_dist.commands.parser import OneLineParser, run_cli
from rebias_dist.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError

_EPILOG = """examples:
  rebias-sweep biased_mnist/sweeps/results --ranks 4
  rebias-sweep biased_mnist/sweeps/table --jobs 8          eight cells at a time on this machine
  rebias-sweep biased_mnist/sweeps/table --slurm --jobs 20 -- --gpus=1 --time=4:00:00
  rebias-sweep biased_mnist/sweeps/table --table           the figures so far
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="rebias-sweep",
        description="Run every cell of a sweep that is not finished. Then write a table of all\n"
        "cells to RUNS/.sweeps/NAME.csv: settings, seeds, commit, accuracies. What follows '--'\n"
        "goes to sbatch.",
        epilog=_EPILOG,
    )
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="a sweep file or a shipped one's name")
    parser.add_argument("--ranks", type=int, help="processes of each run [as the file says]")
    parser.add_argument("--runs-dir", metavar="DIR", help="folder of the runs [runs]")
    add_set(parser, "a setting of every cell, such as data.source=FOLDER; may be repeated")
    parser.add_argument(
        "--jobs",
        type=int,
        help="cells at a time, each on its share of cores and GPUs [1; all with --slurm]",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--slurm", action="store_true", help="submit the cells as a job array")
    what.add_argument("--cell", type=int, metavar="I", help="run only the I-th cell, from 1")
    what.add_argument("--table", action="store_true", help="only write the table")
    what.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.add_argument(
        "--env", type=Path, metavar="FILE", help="with --slurm: file that a job reads first"
    )
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    words, rest = split_rest(argv)
    arguments: argparse.Namespace = parser.parse_args(words)
    arguments.rest = rest
    for name in ("ranks", "jobs", "cell"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name}: {number} is too few; use 1 or more")
    if not arguments.slurm and (arguments.rest or arguments.env):
        raise ConfigError("options for SLURM need --slurm")
    return arguments


def _tabulate(sweep: Sweep, cells: Sequence[Cell]) -> list[Cell]:
    """Write the table and return the cells that are not finished."""
    path = cells[0].log.parent / f"{sweep.name}.csv"
    write_table(path, cells, [*sweep.grid, *sweep.zip])
    unfinished = [cell for cell in cells if not cell.is_finished()]
    finished = len(cells) - len(unfinished)
    print(f"wrote {path}: {finished} of {len(cells)} cells are finished", flush=True)
    return unfinished


def _submit(arguments: argparse.Namespace, sweep: Sweep, cells: Sequence[Cell]) -> int:
    numbers = [number for number, cell in enumerate(cells, 1) if not cell.is_finished()]
    if not numbers:
        print("all cells are finished")
        _tabulate(sweep, cells)
        return EXIT_FINISHED
    words = [arguments.sweep, *(f"--set={setting}" for setting in arguments.set)]
    words += [] if arguments.ranks is None else [f"--ranks={arguments.ranks}"]
    words += [] if arguments.runs_dir is None else [f"--runs-dir={arguments.runs_dir}"]
    logs = cells[0].log.parent
    array, table = submit_sweep(
        ["-m", "launch.commands.sweep", *words],
        numbers,
        logs=logs,
        name=sweep.name,
        at_once=arguments.jobs,
        env=arguments.env,
        rest=arguments.rest,
    )
    print(f"submitted job {array}: {len(numbers)} cells; their output goes to {logs}")
    print(f"submitted job {table}: the table, when they have ended")
    return EXIT_FINISHED


def main(argv: Sequence[str]) -> int:
    """Run a sweep by its command line; return the exit code."""
    arguments = _parse(argv)
    sweep = read_sweep(arguments.sweep, split_settings(arguments.set))
    cells = plan_cells(sweep, arguments.sweep, arguments.ranks, arguments.runs_dir)
    if arguments.dry_run:
        for cell in cells:
            print(f"# {cell.name}: {'finished' if cell.is_finished() else 'to run'}")
            print(shlex.join(cell.command))
        return EXIT_FINISHED
    if arguments.table:
        unfinished = _tabulate(sweep, cells)
        for cell in unfinished:
            print(f"not finished: {cell.name}; see {cell.log}", file=sys.stderr)
        return EXIT_FAILED if unfinished else EXIT_FINISHED
    if arguments.slurm:
        return _submit(arguments, sweep, cells)
    command = shlex.join(["rebias-sweep", *argv])
    if arguments.cell is not None:
        if arguments.cell > len(cells):
            raise ConfigError(f"--cell: {arguments.cell} of {len(cells)} cells")
        return run_cells([cells[arguments.cell - 1]], command)
    code = run_cells(cells, command, arguments.jobs or 1)
    _tabulate(sweep, cells)
    return code


def cli() -> None:
    """Console entry point."""
    run_cli("rebias-sweep", lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
