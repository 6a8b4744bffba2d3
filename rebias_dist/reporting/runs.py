"""Runs read from their folders, and validated.

A run that is unfinished or damaged has a ``problem`` in place of results, never a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_shards.errors import DataShardsError
from data_shards.system.files import open_regular, parse_json
from rebias_dist.config.files import read_config_file, validate
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.reporting.training_data import made_with
from rebias_dist.runs.results import LARGEST
from rebias_dist.runs.results_schema import Results

_LAST = [*Config.model_fields][-1]  # a run writes all sections, in this order


@dataclass(frozen=True)
class Run:
    """The folder of a run: its configuration, and its results or the reason for having none."""

    name: str
    folder: Path = Path()
    config: Config | None = None
    results: Results | None = None
    status: str | None = None
    """As state.json has it."""
    problem: str | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """The options of its training shards, as :func:`made_with` returns them."""


def read_run(folder: Path) -> Run:
    """Read the folder of a run; anything wrong with it becomes its ``problem``."""
    # The folder may be given as '.' or end in '..'.
    name, config, status = folder.resolve().name, None, None
    options: Mapping[str, Any] = {}
    try:
        if not (folder / "config.yaml").exists():  # else taken for a shipped configuration
            raise ConfigError("no run here (config.yaml: No such file or directory)")
        try:
            values = read_config_file(str(folder / "config.yaml"))
            config = validate(values, own_method=False)
        except ConfigError as error:
            raise ConfigError(f"config.yaml: {error}") from None
        if _LAST not in values:  # the rest of a file that was cut would be the defaults
            raise ConfigError(f"config.yaml: cut; its last section, {_LAST}, is missing")
        options = made_with(folder, config)
        state = parse_json(_read(folder / "state.json"))
        found = state.get("status") if isinstance(state, dict) else None
        status = None if found is None else plain(found)
        if status != "finished":
            raise ConfigError(f"unfinished (status {status!r})")
        results = Results.model_validate_json(_read(folder / "results.json"))
        if (results.method, results.dataset) != (config.method.name, config.data.dataset):
            told = f"{results.method} on {results.dataset}"
            raise ConfigError(f"damaged (results.json is of {told})")
        if not any(checkpoint.splits for checkpoint in results.checkpoints.values()):
            raise ConfigError("finished without test figures")
        return Run(name, folder, config, results, status, made_with=options)
    except OSError as error:
        problem = f"{Path(str(error.filename)).name}: {error.strerror}"
    except (ConfigError, DataShardsError) as error:
        problem = str(error)
    except ValidationError as invalid:
        place = ".".join(map(str, invalid.errors()[0]["loc"]))
        problem = f"damaged (results.json: {place}: {invalid.errors()[0]['msg']})"
    except ValueError:
        problem = "damaged (state.json is not JSON)"
    # Names, values and messages come from files that anyone may have written.
    return Run(name, folder, config, None, status, plain(problem, 300), options)


def _read(path: Path) -> bytes:
    path.stat()  # the OSError of a missing file names it
    with open_regular(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DataShardsError(f"{path.name}: larger than {LARGEST >> 20} MB, no run writes that")
    return content


def plain(text: object, longest: int = 120) -> str:
    """Return text of unknown origin as one line that is safe on a terminal and in a file.

    Control characters, line ends and what has no UTF-8 become '\ufffd'; the rest beyond
    ``longest`` characters becomes '…'.
    """
    shown = "".join(c if c.isprintable() else "\ufffd" for c in str(text))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the folders of runs among ``paths``; a folder of runs stands for all in it.

    Raises:
        ConfigError: one of the paths is no folder.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ConfigError(f"{path}: no run folder here")
        inside = sorted(p.parent for p in path.glob("*/config.yaml"))
        found += inside if inside and not (path / "config.yaml").exists() else [path]
    return list(dict.fromkeys(found))
