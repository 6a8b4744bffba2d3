"""Fetch images from a list of addresses into class folders, ready for convert.

LIST has a line for each image: its class (wnid) and its URL, separated by white space or a
comma. An image that passes the checks of convert goes to DIR/train/<wnid>/ (or, with
--val-fraction, to DIR/val/<wnid>/). Its name is the hash of its URL. gather.jsonl records the
outcome of each URL: the same command continues a stopped run, requests nothing twice, and
retries the URLs that could not be reached. failures.csv lists the URLs without an image.

At most --concurrency bodies of --max-bytes are in memory at once.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.commands.shared import parse_limit
from data_shards.errors import EXIT_CLEAN, EXIT_FINDINGS, UsageError
from data_shards.findings import Finding

if TYPE_CHECKING:
    from data_shards.gather.log import Record
    from data_shards.gather.run import Options

EXAMPLE = """
python -m data_shards gather urls.txt --output data/gathered --val-fraction 0.05
python -m data_shards convert imagenet9 --source data/gathered --output shards
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``gather``."""
    parser.add_argument("list", type=Path, metavar="LIST", help="lines 'wnid URL'")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="folder below DIR (default %(default)s)"
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.0,
        metavar="PART",
        help="part of the URLs, chosen by their hash, that goes to DIR/val (default %(default)s)",
    )
    numbers = [
        ("--concurrency", int, 32, "N", "requests at once"),
        ("--per-host", int, 4, "N", "requests at once to one host"),
        ("--delay", float, 0.1, "SECONDS", "between the starts of two requests to one host"),
        ("--attempts", int, 4, "N", "requests for one URL before it is left to the next run"),
        ("--backoff", float, 1.0, "SECONDS", "before the second attempt; doubles each time"),
        ("--connect-timeout", float, 10.0, "SECONDS", "to connect"),
        ("--read-timeout", float, 15.0, "SECONDS", "without a byte"),
        ("--timeout", float, 60.0, "SECONDS", "for a whole request"),
        ("--max-bytes", int, 20_000_000, "N", "size of an image"),
        ("--workers", int, 1, "N", "processes that check images"),
    ]
    for name, kind, default, unit, text in numbers:
        parser.add_argument(
            name, type=kind, default=default, metavar=unit, help=f"{text} (default %(default)s)"
        )
    parser.add_argument(
        "--max-failed",
        metavar="N",
        help="how many lines may fail with the exit code still 0: a number, or a fraction of all "
        "such as 0.2 (default 0)",
    )
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="also request from private or loopback addresses; only for a list that you trust",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Gather and report."""
    from tqdm import tqdm

    try:
        import aiohttp  # noqa: F401  # fail before anything is read
    except ImportError:
        raise UsageError(
            "gather needs the package aiohttp: pip install 'rebias-dist[gather]'"
        ) from None
    from data_shards.convert.publish import Limit
    from data_shards.gather.run import findings, gather
    from data_shards.gather.urls import read_list

    _check(arguments)
    limit = Limit(parse_limit(arguments.max_failed, "--max-failed"))
    tasks, malformed = read_list(arguments.list)
    failed = 0
    quiet = arguments.json or not sys.stderr.isatty()
    with tqdm(total=0, unit="image", disable=quiet) as bar:

        def on_end(record: "Record") -> None:
            nonlocal failed
            failed += record.state != "kept"
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()

        records = gather(tasks, arguments.output, _options(arguments), bar.reset, on_end)
    _report(records, malformed, findings(records), arguments.output, as_json=arguments.json)
    lost = sum(record.state != "kept" for record in records) + len(malformed)
    holds = limit.holds(lost, len(records) + len(malformed))
    return EXIT_CLEAN if holds else EXIT_FINDINGS


def _options(arguments: argparse.Namespace) -> "Options":
    from data_shards.gather.fetch import Limits
    from data_shards.gather.run import Options

    given = vars(arguments)
    limits = Limits(**{field.name: given[field.name] for field in fields(Limits)})
    names = [field.name for field in fields(Options) if field.name != "limits"]
    return Options(limits=limits, **{name: given[name] for name in names})


def _report(
    records: list["Record"],
    malformed: list[Finding],
    found: list[Finding],
    output: Path,
    *,
    as_json: bool,
) -> None:
    """Print what became of the addresses."""
    from data_shards.gather.run import FAILURES_NAME

    states = Counter(record.state for record in records)
    reasons = Counter(reason for r in records if r.state != "kept" for reason in r.reasons)
    verdicts = Counter(finding.verdict for finding in found)
    kept = Counter(record.path.split("/")[0] for record in records if record.state == "kept")
    if as_json:
        for finding in (*malformed, *found):
            print(finding.to_json())
        summary = {
            "path": str(output),
            "urls": len(records),
            "kept": dict(sorted(kept.items())),
            "failed": states["failed"],
            "unreachable": states["unreachable"],
            "reasons": dict(sorted(reasons.items())),
            "malformed_lines": len(malformed),
            "suspect": verdicts["suspect"],
            "duplicate": verdicts["duplicate"],
        }
        print(json.dumps(summary))
        return
    for finding in malformed[:10]:
        print(f"{finding.path}: {finding.reasons[0]}")
    where = ", ".join(f"{number} in {split}" for split, number in sorted(kept.items()))
    print(f"{output}: {states['kept']} of {len(records)} images ({where or 'none'})")
    if verdicts["duplicate"] or verdicts["suspect"]:
        print(
            f"kept among them: {verdicts['duplicate']} with the same bytes as another, "
            f"{verdicts['suspect']} suspect"
        )
    if reasons or malformed:
        why = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
        print(
            f"not fetched: {states['failed']} for good, {states['unreachable']} until the "
            f"next run, {len(malformed)} malformed lines ({why}); "
            f"see {output / FAILURES_NAME}"
        )


def _check(arguments: argparse.Namespace) -> None:
    from data_shards.gather.urls import VAL, is_class_name

    if not is_class_name(arguments.split):
        raise UsageError(f"--split {arguments.split!r}: must consist of letters, digits, - and _")
    if not 0 <= arguments.val_fraction < 1:
        raise UsageError(f"--val-fraction {arguments.val_fraction}: must be from 0 to below 1")
    if arguments.val_fraction and arguments.split == VAL:
        raise UsageError("--val-fraction divides a split from 'val'; give --split another name")
    for name in ("concurrency", "per_host", "attempts", "max_bytes", "workers"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("delay", "backoff"):
        if not 0 <= getattr(arguments, name) < float("inf"):
            raise UsageError(f"--{name} must be 0 or more seconds")
    for name in ("connect_timeout", "read_timeout", "timeout"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} must be more than 0 seconds")
