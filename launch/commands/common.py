"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from rebias_dist.errors import ConfigError

# The dotted name of a field of the configuration.
FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--runs-dir``."""
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of the runs [runs]"
    )


def add_name(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add NAME, which the shell can complete, and ``--runs-dir``."""
    action = parser.add_argument("name", metavar="NAME", help="name of a run", **more)
    action.completer = _names  # type: ignore[attr-defined]
    add_runs_dir(parser)


def _names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    from launch.record.runs import find_runs

    return [folder.name for folder in find_runs(parsed_args.runs_dir)]


def add_new_run(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, ``--name`` and ``--runs-dir`` of the run to start."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file or a shipped configuration")
    parser.add_argument("--name", help="name of the run [its method and the time]")
    parser.add_argument("--runs-dir", metavar="DIR", help="folder of the runs [runs]")


def add_set(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--set KEY=VALUE``, which may be repeated; ``text`` is its help."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def split_settings(settings: Sequence[str]) -> dict[str, str]:
    """Return the values of ``--set`` by key; ConfigError for one that is not KEY=VALUE."""
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not FIELD_NAME.fullmatch(key):
            raise ConfigError(f"--set: {setting!r} is not KEY=VALUE with a field's dotted name")
        found[key] = value
    return found


def given_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the options of ``local`` or ``slurm`` as words, without the run's name and folder."""
    words = []
    for name, given in vars(arguments).items():
        flag = f"--{name.replace('_', '-')}"
        values = given if isinstance(given, list) else [given]
        if name not in ("command", "run", "config", "rest", "name", "runs_dir", "dry_run"):
            values = [value for value in values if value is not None and value is not False]
            words += [flag if value is True else f"{flag}={value}" for value in values]
    return words


def split_rest(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after the first ``--``."""
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]
