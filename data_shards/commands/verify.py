"""Find everything that changed in shards since they were written, and name the part.

DIR is a split (the folder of a manifest.json) or a folder of splits, not an address. A folder with
shards or an index, but no manifest, counts as a split that lost its manifest. Every byte is read: a
flipped bit, a missing, short, repeated or foreign member or shard, an altered index or manifest
gives a finding with its path. An attacker who recomputes all hashes is not detected. To notice it,
compare the printed digest with one that you know, such as that in a run's record.
"""

import argparse
import sys
import time
from pathlib import Path

from data_shards.commands.shared import add_workers_argument, workers_of
from data_shards.errors import EXIT_CLEAN, EXIT_FINDINGS, DataShardsError

EXAMPLE = """
python -m data_shards verify shards/imagenet9
python -m data_shards verify shards/imagenet9/train --json --workers 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``verify``."""
    parser.add_argument("folder", type=Path, metavar="DIR")
    add_workers_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")


def run(arguments: argparse.Namespace) -> int:
    """Verify each split and print the findings as they come."""
    from tqdm import tqdm

    from data_shards.audit.verify import Verified, verify_split
    from data_shards.format.samples import folders_to_verify

    workers = workers_of(arguments)
    hidden = arguments.json or not sys.stderr.isatty()
    total = 0
    for folder in folders_to_verify(arguments.folder):
        begin = time.monotonic()
        told: list[Verified] = []
        count = 0
        with tqdm(total=_samples(folder), desc=folder.name, unit=" images", disable=hidden) as bar:
            for finding in verify_split(folder, workers=workers, told=told, on_shard=bar.update):
                count += 1
                tqdm.write(finding.to_json() if arguments.json else finding.to_text())
        total += count
        seconds = max(time.monotonic() - begin, 1e-3)
        if told and not arguments.json:
            print(
                f"{folder}: {told[0].samples:,} samples, {told[0].samples / seconds:,.0f} "
                f"images/s, {told[0].bytes / seconds / 1e6:,.0f} MB/s: {count or 'no'} findings; "
                f"digest {told[0].digest}"
            )
    return EXIT_FINDINGS if total else EXIT_CLEAN


def _samples(folder: Path) -> int | None:
    from data_shards.format.manifest import MANIFEST_NAME, parse_manifest

    try:
        return parse_manifest(folder / MANIFEST_NAME)[0].samples
    except DataShardsError:
        return None
