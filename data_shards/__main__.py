"""The command ``rebias-shards``, also ``python -m data_shards``."""

import argparse
import importlib
import os
import sys
import traceback

from data_shards.errors import EXIT_FINDINGS, EXIT_INTERNAL, DataShardsError
from data_shards.system.signals import interrupt, on_stop_signals
from data_shards.system.streams import run_command

# Subcommand -> what it does. Its module in ``data_shards.commands`` has EXAMPLE (one command
# a line), ``add_arguments(parser)`` and ``run(arguments) -> exit code``.
_COMMANDS = {
    "check": "report damaged, odd and repeated images",
    "convert": "write shards from a data set",
    "index": "make a split of WebDataset tars that were made elsewhere",
    "merge": "publish a split whose parts were converted by several machines",
    "verify": "find whatever has changed in shards since they were written",
    "inspect": "show what shards hold, in figures and pictures",
    "gather": "fetch images from a list of addresses",
    "cluster": "cluster the images of a split by texture",
}

_EXIT_CODES = """exit codes: 0 clean, 1 findings (the data are damaged or cannot be had) or a file
            that cannot be read or written, 2 wrong use, 70 internal error"""


def _epilog(examples: str) -> str:
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    return f"examples:\n{lines}\n\n{_EXIT_CODES}"


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_shards",
        description="Make and check WebDataset shards with a manifest and an index.",
        epilog=_epilog(
            "python -m data_shards convert biased-mnist --output data/biased_mnist --rho 0.99"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"data_shards.commands.{name}")
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=_epilog(module.EXAMPLE),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def _with_home(word: str) -> str:
    """Return an argument whose path begins with ~ as the shell leaves it in ``--option=~/path``."""
    option, equals, value = word.partition("=")
    if option.startswith("--"):
        return f"{option}{equals}{os.path.expanduser(value)}"
    return os.path.expanduser(word)


def cli(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = [_with_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    return run_command("rebias-shards", lambda: _run(given))


def _run(argv: list[str]) -> int:
    # Only the module of the command that was asked for is imported: some take seconds.
    completing = "_ARGCOMPLETE" in os.environ  # the shell asks what could come next
    words = os.environ.get("COMP_LINE", "").split() if completing else argv
    parser = _parser(next((word for word in words if word in _COMMANDS), None))
    if completing:
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    try:
        with on_stop_signals(interrupt):
            code: int = arguments.run(arguments)
    except DataShardsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        # A full disk or a missing permission: the message of the system says it all.
        print(
            f"error: {error.filename or 'input or output'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return EXIT_FINDINGS
    except Exception as error:
        traceback.print_exc()
        print(f"internal error: {error!r}", file=sys.stderr)
        return EXIT_INTERNAL
    return code


if __name__ == "__main__":
    sys.exit(cli())
