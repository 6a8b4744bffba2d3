"""Write DIR/<split>/<split>-NNNNNN.tar with manifest.json and index.npy."""

import argparse
import importlib
from pathlib import Path

from data_shards.commands import datasets as listed
from data_shards.commands import tables
from data_shards.commands.shared import add_pipeline_arguments, run_listings
from data_shards.sources.presets import PRESETS

EXAMPLE = """
python -m data_shards convert imagenet9 --source ILSVRC2012 --output shards/imagenet9
python -m data_shards convert table birds.csv --attributes place --output shards/birds
python -m data_shards convert biased-mnist --output data/biased_mnist --rho 0.99
"""

_BIASED_MNIST = "biased-mnist"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each data set."""
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    source = importlib.import_module("data_shards.sources.biased_mnist")
    sub = _add(
        datasets,
        _BIASED_MNIST,
        source.__doc__.splitlines()[0] if source.__doc__ else "",
        "python -m data_shards convert biased-mnist --output data/biased_mnist --rho 0.99",
    )
    source.add_arguments(sub)
    sub.set_defaults(convert=source.run)
    for name, summary in listed.DATASETS.items():
        sub = _add(datasets, name, summary, listed.example(name))
        listed.add_arguments(sub, name)
        add_pipeline_arguments(sub)
        sub.set_defaults(convert=run_listings, listings=listed.listings_from)
    sub = _add(datasets, "table", tables.SUMMARY, tables.EXAMPLE)
    tables.add_arguments(sub)
    add_pipeline_arguments(sub)
    sub.set_defaults(convert=run_listings, listings=tables.listings_from)
    for name, preset in PRESETS.items():
        sub = _add(datasets, name, preset.summary, tables.preset_example(preset))
        tables.add_preset_arguments(sub, preset)
        add_pipeline_arguments(sub)
        sub.set_defaults(convert=run_listings, listings=tables.preset_listings_from)


def _add(
    datasets: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    sub = datasets.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
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
    return sub


def run(arguments: argparse.Namespace) -> int:
    """Convert the chosen data set."""
    code: int = arguments.convert(arguments)
    return code
