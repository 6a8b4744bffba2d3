"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from typing import Any


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
    from launch.record.folders import find_runs

    return [folder.name for folder in find_runs(parsed_args.runs_dir)]
