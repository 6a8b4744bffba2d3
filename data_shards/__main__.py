"""The command ``rebias-shards``, also ``python -m data_shards``."""

import argparse
import importlib
import sys
import traceback
from pathlib import Path

from data_shards.errors import EXIT_CLEAN, EXIT_INTERNAL, DataShardsError

# Data set -> module with ``add_arguments(parser)`` and ``run(arguments)``.
_SOURCES = {"biased-mnist": "data_shards.sources.biased_mnist"}

_EPILOG = """example:
  python -m data_shards convert biased-mnist --output data/biased_mnist --rho 0.99

exit codes: 0 clean, 1 the data are damaged or cannot be had, 2 wrong use, 70 internal error
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_shards",
        description="Make and check WebDataset shards with a manifest and an index.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    convert = commands.add_parser(
        "convert",
        help="write shards from a data set",
        description="Write DIR/<split>/<split>-NNNNNN.tar with manifest.json and index.npy.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets = convert.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, module in _SOURCES.items():
        source = importlib.import_module(module)
        sub = datasets.add_parser(
            name,
            help=source.__doc__.splitlines()[0] if source.__doc__ else None,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--output", type=Path, required=True, metavar="DIR")
        sub.add_argument(
            "--seed",
            type=int,
            default=0,
            help="decides everything that is random (default %(default)s)",
        )
        sub.add_argument(
            "--samples-per-shard",
            type=int,
            default=1000,
            metavar="N",
            help="images in one tar (default %(default)s)",
        )
        sub.add_argument(
            "--dry-run", action="store_true", help="say what would be written, write nothing"
        )
        sub.add_argument("--json", action="store_true", help="one JSON object a line")
        source.add_arguments(sub)
        sub.set_defaults(run=source.run)
    return parser


def cli(argv: list[str] | None = None) -> int | None:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except DataShardsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # A full disk or a missing permission: the message of the system says it all.
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INTERNAL
    except Exception as error:
        traceback.print_exc()
        print(f"internal error: {error!r}", file=sys.stderr)
        return EXIT_INTERNAL
    return EXIT_CLEAN


if __name__ == "__main__":
    sys.exit(cli())
