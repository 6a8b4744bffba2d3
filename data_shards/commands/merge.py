"""Publish a split whose parts were converted with --part.

This checks that every shard exists, then writes index and manifest. The result is byte for byte
the same as that of one conversion without --part.
"""

import argparse
import time
from pathlib import Path

from data_shards.commands.reports import report_overlaps, report_split, report_training
from data_shards.commands.shared import (
    add_limit_arguments,
    add_workers_argument,
    parse_limit,
    workers_of,
)
from data_shards.sources.datasets import TRAIN

EXAMPLE = """
python -m data_shards convert imagenet1k --source train.tar --output shards --part 1/2
python -m data_shards convert imagenet1k --source train.tar --output shards --part 2/2
python -m data_shards merge shards --split train
python -m data_shards merge shards --split selection
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``merge``."""
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--split", required=True, metavar="NAME")
    add_limit_arguments(parser)
    add_workers_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Merge one split."""
    from data_shards.convert.publish import Limit, merge

    limit = Limit(parse_limit(arguments.max_corrupt), f"--max-corrupt {arguments.max_corrupt}")
    workers = workers_of(arguments)
    begin = time.monotonic()
    manifest = merge(arguments.output, arguments.split, limit=limit, workers=workers)
    state: dict[str, object] = {"state": "merged", "seconds": round(time.monotonic() - begin, 1)}
    code = report_split(arguments.output, manifest, limit, state, as_json=arguments.json)
    report_overlaps(arguments.output, workers, as_json=arguments.json)
    if manifest.split == TRAIN and not arguments.json:
        report_training(arguments.output, [attribute.name for attribute in manifest.attributes])
    return code
