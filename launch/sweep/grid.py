"""Sweeps: the product of some settings, each cell a run of its own, here or as a SLURM array.

A sweep is continued by its own command: finished cells are skipped, a cell that was under way
goes on from its checkpoint. No torch is imported here; each cell is a process group of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from launch.sweep.array import submit_sweep
from launch.sweep.runner import CellRunner, handle_signals, shares
from launch.sweep.table import Row, note_commit, write_table
from rebias_dist import version
from rebias_dist.commands.parser import OneLineParser, run_cli
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import differences, parse_yaml, read_config_file, validate
from rebias_dist.config.plan import check_world
from rebias_dist.config.schema import Config, Section
from rebias_dist.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError, InterruptedRun
from rebias_dist.methods.options import Count

# What a flag can carry; null cannot be told from a text there.
Value = str | int | float | bool | list[Any] | dict[str, Any]
Settings = dict[str, Value]
Axis = Annotated[list[Value], Field(min_length=1)]


class Sweep(Section):
    """A sweep file: every key of a setting is a dotted field of the configuration."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}$")]
    """Opens the name of each run."""
    config: str
    """The configuration that the cells share: a file or a shipped one."""
    ranks: Count = 1
    """Processes of each run."""
    grid: dict[str, Axis] = Field(default_factory=dict)
    """Values of which every combination is a cell."""
    zip: dict[str, Axis] = Field(default_factory=dict)
    """Values that vary together: the first of each, the second of each and so on."""
    set: Settings = Field(default_factory=dict)
    """Settings of every cell."""
    where: dict[str, dict[str, Settings]] = Field(default_factory=dict)
    """Settings of the cells in which a key has a value: {key: {value: settings}}."""

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        lengths = {key: len(values) for key, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"zip: the lists must be equally long, not {lengths}")
        named = [*self.grid, *self.zip]
        for key in (*named, *self.set):
            if key in ("name", "runs_dir"):
                raise ValueError(f"{key}: decided by the sweep (see --runs-dir); remove it")
            if [*named, *self.set].count(key) > 1:
                raise ValueError(f"{key}: given twice among grid, zip and set; remove one")
        for key, cases in self.where.items():
            known = {str(value) for value in (*self.grid.get(key, ()), *self.zip.get(key, ()))}
            for value, settings in cases.items():
                if value not in known:
                    raise ValueError(f"where.{key}.{value}: no cell has this value")
                for overridden in settings.keys() & {*named, "name", "runs_dir"}:
                    raise ValueError(
                        f"where.{key}.{value}.{overridden}: would belie the run's name"
                    )
        return self

    def cells(self) -> Iterator[tuple[str, Settings]]:
        """Yield the run name and the settings of each cell, the first key varying slowest."""
        axes: list[list[Settings]] = [[{k: v} for v in values] for k, values in self.grid.items()]
        if self.zip:
            rows = zip(*self.zip.values(), strict=True)
            axes.append([dict(zip(self.zip, row, strict=True)) for row in rows])
        for combination in itertools.product(*axes):
            labels = [_label(*next(iter(part.items()))) for part in combination]
            settings = dict(self.set)
            for part in combination:
                settings |= part
            for key, cases in self.where.items():
                settings |= cases.get(str(settings.get(key)), {})
            yield "-".join([self.name, *labels]), settings


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    arguments: list[str]
    """Flags of ``rebias_dist.train``."""
    config: Config
    ranks: int

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        return Path(self.config.runs_dir) / self.name

    @property
    def log(self) -> Path:
        """Return the file of the cell's output; beside the folder, which the run itself makes."""
        return Path(self.config.runs_dir) / ".sweeps" / f"{self.name}.log"

    @property
    def code(self) -> Path:
        """Return the file with the commits that the cell ran with."""
        return self.log.with_suffix(".commits.json")

    @property
    def command(self) -> list[str]:
        """Return a command by which anybody can start the run, or continue it."""
        train = ["-m", "rebias_dist.train", *self.arguments]
        if self.ranks == 1:
            return [sys.executable, *train]
        launcher = ["--standalone", "--local-addr=127.0.0.1", f"--nproc_per_node={self.ranks}"]
        return [sys.executable, "-m", "torch.distributed.run", *launcher, *train]

    @property
    def bound_command(self) -> list[str]:
        """Return what the sweep itself starts: the same, but it dies with this process.

        And its ranks meet on loopback, where torchrun would listen on all interfaces.
        """
        parent = str(os.getpid())
        if self.ranks == 1:
            return [sys.executable, "-m", "launch.sweep.cell", parent, *self.arguments]
        agent = ["-m", "launch.local.agent", parent, f"--nproc-per-node={self.ranks}"]
        return [sys.executable, *agent, "-m", "launch.sweep.cell", "agent", *self.arguments]

    def is_finished(self) -> bool:
        """Return whether the run's folder says that it is complete."""
        try:
            state = json.loads((self.folder / "state.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(state, dict) and state.get("status") == "finished"


def _label(key: str, value: Value) -> str:
    """Return a value as a part of a name: 'rebias', but 'seed0', for a bare number says nothing."""
    text = value if isinstance(value, str) else f"{key.rpartition('.')[2]}{json.dumps(value)}"
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).strip("_")


def read_sweep(path: str, given: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, or raise ``ConfigError`` with one line for the first fault.

    Args:
        path: a file or a shipped sweep's name.
        given: settings of every cell beside those of the file, as KEY=VALUE.
    """
    values = read_config_file(path)
    for setting in given:
        key, equals, text = setting.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]*", key):
            raise ConfigError(f"--set: {setting!r} is not KEY=VALUE with a field's dotted name")
        own = values.get("set") or {}
        if not isinstance(own, dict):
            break  # refused below
        values["set"] = {**own, key: parse_yaml(text, f"--set {setting}")}
    try:
        return Sweep.model_validate(values)
    except ValidationError as invalid:
        error = invalid.errors()[0]
    if error["type"] == "value_error":
        raise ConfigError(f"{path}: {error['msg'].removeprefix('Value error, ')}")
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        raise ConfigError(f"{path}: {where}: no such key; known: {', '.join(Sweep.model_fields)}")
    raise ConfigError(f"{path}: {where}: {error['input']!r}: {error['msg']}")


def plan_cells(sweep: Sweep, where: str, ranks: int | None, runs_dir: str | None) -> list[Cell]:
    """Resolve every cell by the trainer's own command line; raise before any of them starts."""
    cells: list[Cell] = []
    for name, settings in sweep.cells():
        arguments = [f"--config={sweep.config}", f"--name={name}"]
        arguments += [] if runs_dir is None else [f"--runs-dir={runs_dir}"]
        for key, value in settings.items():
            arguments.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
        try:
            config = parse_train(arguments, program=f"rebias-sweep: {where}").config
            check_world(config, ranks or sweep.ranks)
            cell = Cell(name, arguments, config, ranks or sweep.ranks)
            _check_folder(cell)
        except ConfigError as error:
            raise ConfigError(f"{where}: cell {name}: {error}") from None
        if any(name == other.name for other in cells):
            raise ConfigError(f"{where}: two cells are named {name}; their values look alike")
        cells.append(cell)
    return cells


def _check_folder(cell: Cell) -> None:
    """Refuse a cell whose folder holds the run of another configuration."""
    path = cell.folder / "config.yaml"
    if not path.exists():
        return
    old = validate(read_config_file(str(path)), str(path))
    # A run may be prolonged by max_steps, but a cell that is finished would then be passed over.
    changed = differences(
        {"max_steps": old.max_steps, **old.identity()},
        {"max_steps": cell.config.max_steps, **cell.config.identity()},
    )
    if changed:
        raise ConfigError(
            f"{cell.folder} holds another configuration ({'; '.join(changed)}); "
            "rename the sweep or remove the folder"
        )


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


def write_csv(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """Write the table of a sweep and say where."""
    path = cells[0].log.parent / f"{sweep.name}.csv"
    rows = [Row(cell.name, cell.folder, cell.config, cell.code) for cell in cells]
    write_table(path, rows, [*sweep.grid, *sweep.zip])
    finished = sum(cell.is_finished() for cell in cells)
    print(f"wrote {path}: {finished} of {len(cells)} cells are finished", flush=True)


def tabulate(sweep: Sweep, cells: Sequence[Cell]) -> int:
    """Write the table of a sweep, and name the cells that are not finished.

    Returns:
        0, or 1 when any is not.
    """
    write_csv(sweep, cells)
    unfinished = [cell for cell in cells if not cell.is_finished()]
    for cell in unfinished:
        print(f"not finished: {cell.name}; see {cell.log}", file=sys.stderr)
    return EXIT_FAILED if unfinished else EXIT_FINISHED


_EPILOG = """examples:
  rebias-sweep biased_mnist/sweeps/results --ranks 4
  rebias-sweep biased_mnist/sweeps/table --jobs 8          eight cells at a time on this machine
  rebias-sweep biased_mnist/sweeps/table --slurm --jobs 20 -- --gpus=1 --time=4:00:00
  rebias-sweep biased_mnist/sweeps/table --table           the figures so far
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="rebias-sweep",
        description="Run every cell of a sweep that is not finished, and write a table of all "
        "to RUNS/.sweeps/NAME.csv: settings, seeds, commit, accuracies. What follows '--' goes to "
        "sbatch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="a sweep file or a shipped one's name")
    parser.add_argument("--ranks", type=int, help="processes of each run [as the file says]")
    parser.add_argument("--runs-dir", metavar="DIR", help="folder of the runs [runs]")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of every cell, such as data.source=FOLDER; repeat at will",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="cells at a time, each on its share of cores and GPUs [1; with --slurm all]",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--slurm", action="store_true", help="submit the cells as an array of jobs")
    what.add_argument("--cell", type=int, metavar="I", help="run the I-th cell alone, from 1")
    what.add_argument("--table", action="store_true", help="write the table and stop")
    what.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--env", type=Path, metavar="FILE", help="with --slurm: what a job reads before it starts"
    )
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    arguments: argparse.Namespace = parser.parse_args(words[:place])
    arguments.rest = words[place + 1 :]
    for name in ("ranks", "jobs", "cell"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name}: {number} is too few; use 1 or more")
    if not arguments.slurm and (arguments.rest or arguments.env):
        raise ConfigError("options for SLURM need --slurm")
    return arguments


def _submit(arguments: argparse.Namespace, sweep: Sweep, cells: Sequence[Cell]) -> int:
    numbers = [number for number, cell in enumerate(cells, 1) if not cell.is_finished()]
    if not numbers:
        print("all cells are finished")
        return tabulate(sweep, cells)
    words = [arguments.sweep, *(f"--set={setting}" for setting in arguments.set)]
    words += [] if arguments.ranks is None else [f"--ranks={arguments.ranks}"]
    words += [] if arguments.runs_dir is None else [f"--runs-dir={arguments.runs_dir}"]
    logs = cells[0].log.parent
    array, table = submit_sweep(
        words,
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
    sweep = read_sweep(arguments.sweep, arguments.set)
    cells = plan_cells(sweep, arguments.sweep, arguments.ranks, arguments.runs_dir)
    if arguments.dry_run:
        for cell in cells:
            print(f"# {cell.name}: {'finished' if cell.is_finished() else 'to run'}")
            print(shlex.join(cell.command))
        return EXIT_FINISHED
    if arguments.table:
        return tabulate(sweep, cells)
    if arguments.slurm:
        return _submit(arguments, sweep, cells)
    command = shlex.join(["rebias-sweep", *argv])
    if arguments.cell is not None:
        if arguments.cell > len(cells):
            raise ConfigError(f"--cell: {arguments.cell} of {len(cells)} cells")
        return run_cells([cells[arguments.cell - 1]], command)
    code = run_cells(cells, command, arguments.jobs or 1)
    write_csv(sweep, cells)
    return code


def cli() -> None:
    """Console entry point."""
    run_cli("rebias-sweep", lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
