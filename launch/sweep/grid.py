"""The sweep file and its cells: each combination of some settings is one run."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from launch.record.reading import read_state
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import (
    differences,
    first_fault,
    parse_yaml,
    read_config_file,
    validate,
)
from rebias_dist.config.plan import check_world
from rebias_dist.config.schema import Config, Section
from rebias_dist.errors import ConfigError
from rebias_dist.methods.options import Count

# null is left out: on a command line it cannot be told from a text.
Value = str | int | float | bool | list[Any] | dict[str, Any]
Settings = dict[str, Value]
Axis = Annotated[list[Value], Field(min_length=1)]

_BY_SWEEP = ("name", "runs_dir")


class Sweep(Section):
    """A sweep file. Every key of a setting is the dotted name of a field of the configuration."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}$")]
    """Begin of the name of each run."""
    config: str
    """Configuration that the cells share: a file or the name of a shipped one."""
    ranks: Count = 1
    """Processes of each run."""
    grid: dict[str, Axis] = Field(default_factory=dict)
    """Values of each key; every combination of them is a cell."""
    zip: dict[str, Axis] = Field(default_factory=dict)
    """Values that vary together: all first ones, all second ones and so on."""
    set: Settings = Field(default_factory=dict)
    """Settings of every cell."""
    where: dict[str, dict[str, Settings]] = Field(default_factory=dict)
    """Settings of the cells in which a key has a value, as in YAML: {key: {value: settings}}."""

    @field_validator("grid", "zip", "set")
    @classmethod
    def _leave_the_name_to_the_sweep(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for key in _BY_SWEEP:
            if key in settings:
                raise ValueError(f"{key}: decided by the sweep (see --runs-dir); remove it")
        return settings

    @field_validator("zip")
    @classmethod
    def _equally_long(cls, axes: dict[str, Axis]) -> dict[str, Axis]:
        lengths = {key: len(values) for key, values in axes.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"zip: the lists must be equally long, not {lengths}")
        return axes

    @model_validator(mode="after")
    def _each_key_once(self) -> Sweep:
        given = [*self.grid, *self.zip, *self.set]
        for key in given:
            if given.count(key) > 1:
                raise ValueError(f"{key}: given twice among grid, zip and set; remove one")
        return self

    @model_validator(mode="after")
    def _where_names_cells(self) -> Sweep:
        axes = {**self.grid, **self.zip}
        for key, cases in self.where.items():
            known = {_text(value) for value in axes.get(key, ())}
            for value, settings in cases.items():
                if value not in known:
                    raise ValueError(f"where.{key}.{value}: no cell has this value")
                for overridden in settings.keys() & {*axes, *_BY_SWEEP}:
                    raise ValueError(
                        f"where.{key}.{value}.{overridden}: the run's name is made from the "
                        "grid; remove it"
                    )
        return self

    @model_validator(mode="after")
    def _where_decides_once(self) -> Sweep:
        for name, settings in self.cells():
            decided: dict[str, tuple[str, Value]] = {}
            for key, case in self._cases_of(settings):
                for field, value in case.items():
                    by, other = decided.setdefault(field, (key, value))
                    if other != value:
                        raise ValueError(
                            f"where: {field} of the cell {name} is {_text(other)} by {by} and "
                            f"{_text(value)} by {key}; keep one"
                        )
        return self

    def _cases_of(self, settings: Settings) -> Iterator[tuple[str, Settings]]:
        """Yield the cases of ``where`` that a cell with these settings meets, with their keys."""
        for key, cases in self.where.items():
            yield key, cases.get(_text(settings.get(key, "")), {})

    def cells(self) -> Iterator[tuple[str, Settings]]:
        """Yield the run name and the settings of each cell; the first key varies slowest."""
        axes: list[list[Settings]] = [[{k: v} for v in values] for k, values in self.grid.items()]
        if self.zip:
            rows = zip(*self.zip.values(), strict=True)
            axes.append([dict(zip(self.zip, row, strict=True)) for row in rows])
        for combination in itertools.product(*axes):
            labels = [_label(*next(iter(part.items()))) for part in combination]
            settings = dict(self.set)
            for part in combination:
                settings |= part
            for _, case in self._cases_of(settings):
                settings |= case  # never a key of the grid
            yield "-".join([self.name, *labels]), settings


def _text(value: Value) -> str:
    """Return a value as YAML has it, which is also how a flag takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _label(key: str, value: Value) -> str:
    """Return a value as a part of a name: 'rebias', but 'seed0', as a bare number says nothing."""
    text = value if isinstance(value, str) else f"{key.rpartition('.')[2]}{json.dumps(value)}"
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).strip("_")


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
        """Return the file of the cell's output.

        It lies beside the run's folder, because the run itself makes that.
        """
        return Path(self.config.runs_dir) / ".sweeps" / f"{self.name}.log"

    @property
    def commits(self) -> Path:
        """Return the file with the commits that the cell ran with."""
        return self.log.with_suffix(".commits.json")

    @property
    def command(self) -> list[str]:
        """Return a command with which anybody can start or continue the run."""
        train = ["-m", "rebias_dist.train", *self.arguments]
        if self.ranks == 1:
            return [sys.executable, *train]
        launcher = ["--standalone", "--local-addr=127.0.0.1", f"--nproc_per_node={self.ranks}"]
        return [sys.executable, "-m", "torch.distributed.run", *launcher, *train]

    @property
    def bound_command(self) -> list[str]:
        """Return the command that the sweep starts: the same run, but it dies with the sweep.

        Its ranks meet on loopback, where torchrun would listen on all interfaces.
        """
        cell = ["-m", "launch.sweep.cell", *self.arguments]
        if self.ranks == 1:
            return [sys.executable, *cell]
        agent = ["-m", "launch.local.agent", f"--nproc-per-node={self.ranks}"]
        return [sys.executable, *agent, *cell]

    def is_finished(self) -> bool:
        """Return whether the run's folder says that it is complete."""
        return read_state(self.folder).get("status") == "finished"


def read_sweep(path: str, given: Mapping[str, str] | None = None) -> Sweep:
    """Read a sweep file.

    Args:
        path: a file or the name of a shipped sweep.
        given: settings of every cell, in YAML. They count more than ``set`` and ``where`` of the
            file.

    Raises:
        ConfigError: one line for the first fault.
    """
    values = read_config_file(path)
    own = values.get("set") or {}
    given = given or {}
    if isinstance(own, dict):  # anything else is refused below
        parsed = {key: parse_yaml(text, f"--set {key}={text}") for key, text in given.items()}
        values["set"] = {**own, **parsed}
    try:
        sweep = Sweep.model_validate(values)
    except ValidationError as invalid:
        fault = first_fault(invalid, values, lambda location: list(Sweep.model_fields))
        raise ConfigError(f"{path}: {fault}") from None
    where = {
        key: {
            value: {field: one for field, one in settings.items() if field not in given}
            for value, settings in cases.items()
        }
        for key, cases in sweep.where.items()
    }
    return sweep.model_copy(update={"where": where})


def plan_cells(
    sweep: Sweep, where: str, ranks: int | None = None, runs_dir: str | None = None
) -> Sequence[Cell]:
    """Resolve every cell by the trainer's own command line, before any of them starts.

    Args:
        sweep: a sweep.
        where: its file, for messages.
        ranks: processes of each run; None for those of the file.
        runs_dir: folder of the runs; None for that of the configuration.

    Raises:
        ConfigError: names the first cell that is wrong.
    """
    cells: dict[str, Cell] = {}
    for name, settings in sweep.cells():
        arguments = [f"--config={sweep.config}", f"--name={name}"]
        arguments += [] if runs_dir is None else [f"--runs-dir={runs_dir}"]
        for key, value in settings.items():
            arguments.append(f"--{key}={_text(value)}")
        try:
            config = parse_train(arguments, program=f"rebias-sweep: {where}").config
            check_world(config, ranks or sweep.ranks)
            cell = Cell(name, arguments, config, ranks or sweep.ranks)
            _check_folder(cell)
        except ConfigError as error:
            raise ConfigError(f"{where}: cell {name}: {error}") from None
        if name in cells:
            raise ConfigError(f"{where}: two cells are named {name}; their values look alike")
        cells[name] = cell
    return list(cells.values())


def _check_folder(cell: Cell) -> None:
    """Refuse a cell whose folder holds the run of another configuration."""
    path = cell.folder / "config.yaml"
    if not path.exists():
        return
    old = validate(read_config_file(str(path)), str(path))
    # A run may be continued with a larger max_steps, but a finished cell would be skipped.
    changed = differences(
        {"max_steps": old.max_steps, **old.identity()},
        {"max_steps": cell.config.max_steps, **cell.config.identity()},
    )
    if changed:
        raise ConfigError(
            f"{cell.folder} holds another configuration ({'; '.join(changed)}); "
            "rename the sweep or remove the folder"
        )
