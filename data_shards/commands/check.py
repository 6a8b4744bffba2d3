"""Report damaged, odd and repeated images; nothing is changed.

PATH is a folder with images in it, an image, a tar archive (also one of tars), or a folder
of shards. Several paths are also compared with each other, to find duplicates.

verdicts: corrupt (damaged), refused (a link out of PATH, a device, an absurd size, another
format), duplicate (the same bytes or pixels as another), suspect (odd, with all its pixels),
ok (shown with --json, for images that have flags only).
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from data_shards.audit.check import Check
from data_shards.commands.shared import add_workers_argument, workers_of
from data_shards.errors import EXIT_CLEAN, EXIT_FINDINGS
from data_shards.litter import count_litter

EXAMPLE = """
python -m data_shards check ILSVRC2012/train ILSVRC2012/val --workers 8
python -m data_shards check imagenet-a.tar --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check``."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    add_workers_argument(parser)
    parser.add_argument("--strict", action="store_true", help="count suspect images as findings")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Check the paths and print the findings as they come."""
    progress = not arguments.json and sys.stderr.isatty()
    check = Check(arguments.paths, workers=workers_of(arguments), progress=progress)
    counts: Counter[str] = Counter()
    for finding in check.run():
        counts[finding.verdict] += 1
        if arguments.json:
            print(finding.to_json())
        elif finding.verdict != "ok":
            print(finding.to_text())
    summary = _summary(check, counts)
    print(summary, file=sys.stderr if arguments.json else sys.stdout)
    failing = ["corrupt", "refused", "duplicate", *(["suspect"] if arguments.strict else [])]
    return EXIT_FINDINGS if any(counts[verdict] for verdict in failing) else EXIT_CLEAN


def _summary(check: Check, counts: Counter[str]) -> str:
    rate = check.images / check.seconds if check.seconds else 0.0
    verdicts = ", ".join(
        f"{counts[verdict]:,} {verdict}"
        for verdict in ("corrupt", "refused", "suspect", "duplicate")
    )
    lines = [f"{check.images:,} images checked, {rate:,.0f}/s: {verdicts}"]
    if check.flags:
        flags = ", ".join(f"{name} {count:,}" for name, count in sorted(check.flags.items()))
        lines.append(f"flags: {flags}")
    if check.others:
        packed = f"; unpack archives such as {min(check.packed)}" if check.packed else ""
        lines.append(f"{check.others:,} other files were not looked at{packed}")
    if check.litter:
        lines.append(f"folders of other programs are not read: {count_litter(check.litter)}")
    return "\n".join(lines)
