"""Write DIR/<split>/<split>-NNNNNN.tar with manifest.json and index.npy."""

import argparse
import importlib
from pathlib import Path

from data_shards.errors import EXIT_CLEAN

EXAMPLE = "python -m data_shards convert biased-mnist --output data/biased_mnist --rho 0.99"

# Data set -> module with ``add_arguments(parser)`` and ``run(arguments)``.
_SOURCES = {"biased-mnist": "data_shards.sources.biased_mnist"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each data set."""
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, module in _SOURCES.items():
        source = importlib.import_module(module)
        sub = datasets.add_parser(
            name,
            help=source.__doc__.splitlines()[0] if source.__doc__ else None,
            epilog=f"example:\n  {EXAMPLE}",
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
        sub.set_defaults(convert=source.run)


def run(arguments: argparse.Namespace) -> int:
    """Convert the chosen data set."""
    arguments.convert(arguments)
    return EXIT_CLEAN
