"""The command ``rebias-launch``, also ``python -m launch``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from launch.commands.common import split_rest
from rebias_dist import version
from rebias_dist.commands.parser import OneLineParser, run_cli
from rebias_dist.errors import ConfigError

# Subcommand -> its summary. Its module in ``launch.commands`` has a docstring, EXAMPLES (one
# command a line), ``add_arguments(parser)`` and ``run(arguments) -> exit code``.
_COMMANDS = {
    "local": "train on this machine, and restart from the newest checkpoint after a failure",
    "slurm": "train through SLURM: make the batch script and submit it",
    "kubernetes": "train on Kubernetes: make a JobSet and submit it",
    "list": "show all runs and their state",
    "status": "show one run, live",
    "logs": "print the log of a run, or follow it",
    "stop": "ask a run to save and leave, and kill it if it does not",
    "resume": "start a run again, with the command that started it",
    "tensorboard": "serve TensorBoard for some or all runs, on loopback",
}
# Commands that pass on what follows '--'.
_PASSING_ON = ("local", "slurm")

_EXIT_CODES = """exit codes: 0 finished, 1 failed (worth a retry), 2 wrong use or configuration,
            3 given up (crash loop, non-finite, damaged data), 75 interrupted, to be resumed"""


def _epilog(examples: str) -> str:
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    return f"examples:\n{lines}\n\n{_EXIT_CODES}"


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="rebias-launch",
        description="Start, supervise and manage runs.",
        epilog=_epilog("rebias-launch local biased_mnist/demo --ranks 2\nrebias-launch list"),
    )
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"launch.commands.{name}")
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=_epilog(module.EXAMPLES),
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a command by its command line and return its exit code.

    The words after ``--`` are in ``arguments.rest``, for the commands that pass them on.

    Raises:
        ConfigError: the command is not one of them.
    """
    words, rest = split_rest(argv)
    # Only the module of the given command is imported.
    known = words
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        known = [word for word in os.environ.get("COMP_LINE", "").split() if word in _COMMANDS]
    chosen = next((word for word in known if not word.startswith("-")), None)
    arguments = _parser(chosen if chosen in _COMMANDS else None).parse_args(words)
    if rest and chosen not in _PASSING_ON:
        raise ConfigError(f"{chosen}: takes nothing after '--'; remove {' '.join(rest)!r}")
    arguments.rest = rest
    code: int = arguments.run(arguments)
    return code


def cli() -> None:
    """Console entry point."""
    run_cli("rebias-launch", lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
