"""Shared by ``merge`` and by ``convert`` of the data sets that have listings."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.commands.reports import (
    print_left_out,
    report_empty,
    report_overlaps,
    report_part,
    report_split,
    report_training,
)
from data_shards.errors import EXIT_CLEAN, UsageError
from data_shards.sources.datasets import TRAIN

if TYPE_CHECKING:
    from data_shards.convert.plan import Conversion
    from data_shards.convert.publish import Limit


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-corrupt``."""
    parser.add_argument(
        "--max-corrupt",
        metavar="N",
        help="publish nothing if more than N images are corrupt or refused; exit with 0 up to N. "
        "N is a number, or a fraction of all images such as 0.001. Default: publish, and exit "
        "with 1 if there is any",
    )


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the pipeline."""
    add_workers_argument(parser)
    parser.add_argument(
        "--bytes-per-shard",
        type=int,
        metavar="BYTES",
        help="end a shard before it is larger, by the sizes of the source's files",
    )
    parser.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="store images with a longer short side as JPEGs of this short side: this needs less "
        "space, loads faster and changes the pixels",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=90,
        metavar="Q",
        help="quality of the JPEGs that --resize makes (default %(default)s)",
    )
    parser.add_argument(
        "--reencode",
        action="store_true",
        help="take WebP, BMP, TIFF and GIF images (the first frame) too, and store them as PNG",
    )
    parser.add_argument(
        "--on-corrupt",
        choices=("quarantine", "fail"),
        default="quarantine",
        help="quarantine: leave corrupt and refused images out and list them in the manifest; "
        "fail: stop after the first shard with such an image (default %(default)s)",
    )
    add_limit_arguments(parser)
    parser.add_argument(
        "--quarantine",
        type=Path,
        metavar="DIR",
        help="copy the images that are left out to DIR/<split>, also those of an earlier run",
    )
    parser.add_argument(
        "--exclude-suspect", action="store_true", help="leave out odd images as well"
    )
    parser.add_argument(
        "--part",
        default="1/1",
        metavar="i/n",
        help="write the i-th of n parts of the shards; merge publishes them when all exist. The "
        "parts may run on several machines, with the same source, options and DIR",
    )


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers``."""
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )


def workers_of(arguments: argparse.Namespace) -> int:
    """Return the number of worker processes."""
    from data_shards.convert.workers import default_workers

    workers: int = default_workers() if arguments.workers is None else arguments.workers
    if workers < 1:
        raise UsageError(f"--workers is {workers}: it must be at least 1")
    return workers


def parse_limit(text: str | None, option: str = "--max-corrupt") -> int | float | None:
    """Return the value of such an option: an int, or a float if it is a fraction."""
    if text is None:
        return None
    try:
        if text.isdecimal():
            return int(text)
        fraction = float(text)
        if 0 <= fraction <= 1:
            return fraction
    except ValueError:
        pass
    raise UsageError(f"{option} {text}: must be a number or a fraction from 0 to 1")


def words_of(option: str, text: str | None) -> list[str]:
    """Return the words of an option, which commas separate."""
    words = [word.strip() for word in (text or "").split(",")]
    if words == [""]:
        return []
    twice = next((word for word in words if words.count(word) > 1 or not word), None)
    if twice is not None:
        raise UsageError(f"{option} {text}: {twice!r} must be there once")
    return words


def parse_part(text: str) -> tuple[int, int]:
    """Return the value of ``--part``: (number from 1, how many)."""
    number, slash, parts = text.partition("/")
    if slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts):
        return int(number), int(parts)
    raise UsageError(f"--part {text}: must be i/n with i from 1 to n, such as 3/8")


def run_listings(arguments: argparse.Namespace) -> int:
    """Convert a data set that has listings; return the exit code.

    ``arguments.listings(arguments)`` returns them.
    """
    from data_shards.convert.plan import Conversion, Options
    from data_shards.convert.publish import Limit
    from data_shards.convert.quarantine import copy_refused

    options = Options(
        seed=arguments.seed,
        samples_per_shard=arguments.samples_per_shard,
        bytes_per_shard=arguments.bytes_per_shard,
        resize=arguments.resize,
        quality=arguments.quality,
        exclude_suspect=arguments.exclude_suspect,
        reencode=arguments.reencode,
    )
    part = parse_part(arguments.part)
    workers = workers_of(arguments)
    most = parse_limit(arguments.max_corrupt)
    if arguments.on_corrupt == "fail":
        if most is not None:
            raise UsageError("--max-corrupt: has no effect with --on-corrupt fail; give one")
        limit = Limit(0, "--on-corrupt fail")
    else:
        limit = Limit(most, f"--max-corrupt {arguments.max_corrupt}")
    conversions = [Conversion(listing, options) for listing in arguments.listings(arguments)]
    full = [conversion for conversion in conversions if conversion.listing.items]
    empty = [c.listing for c in conversions if not c.listing.items]
    for conversion in full:
        conversion.check()
    for listing in (c.listing for c in conversions):
        for warning in listing.warnings:
            print(f"warning: {listing.split}: {warning}", file=sys.stderr)
    if arguments.quarantine is not None and not arguments.dry_run:
        for listing in empty:
            copy_refused(listing, arguments.quarantine / listing.split)
    code = report_empty(empty, limit, arguments)
    if arguments.dry_run:
        for conversion in full:
            _dry_run(conversion, workers, part, arguments)
        return code
    for conversion in full:
        code = max(code, _convert(conversion, workers, limit, part, arguments))
    if part[1] == 1:
        report_overlaps(arguments.output, workers, as_json=arguments.json)
        train = [c.listing for c in full if c.listing.split == TRAIN]
        if train and not arguments.json:
            report_training(arguments.output, list(train[0].attributes))
    return code


def _dry_run(
    conversion: Conversion, workers: int, part: tuple[int, int], arguments: argparse.Namespace
) -> None:
    from data_shards.convert.estimate import estimate
    from data_shards.format.writer import present

    there = present(arguments.output, conversion.plan)
    found = estimate(conversion, workers, conversion.part(*part))
    listing = conversion.listing
    left_out = [finding for finding in listing.findings if finding.verdict == "refused"]
    if arguments.json:
        report = {
            "split": listing.split,
            "path": str(arguments.output / listing.split),
            "state": "present" if there else "planned",
            "images": found.images,
            "shards": found.shards,
            "bytes": found.bytes,
            "seconds": round(found.seconds, 1),
            "sampled": found.sampled,
            "damaged_in_sample": found.damaged,
            "refused": sum(finding.images or 1 for finding in left_out),
            "warnings": listing.warnings,
        }
        print(json.dumps(report))
        return
    print(
        f"{arguments.output / listing.split}: {'present' if there else 'planned'}, "
        f"{found.images:,} images in {found.shards:,} shards, about {found.bytes / 1e9:.2f} GB "
        f"and {_duration(found.seconds)} with {workers} workers (from {found.sampled} images, "
        f"{found.damaged} of them damaged)"
    )
    print_left_out(left_out)


def _convert(
    conversion: Conversion,
    workers: int,
    limit: Limit,
    part: tuple[int, int],
    arguments: argparse.Namespace,
) -> int:
    from tqdm import tqdm

    from data_shards.convert.pipeline import convert_listing

    split = conversion.listing.split
    total = sum(
        int(conversion.bounds[number + 1] - conversion.bounds[number])
        for number in conversion.part(*part)
    )
    begin = time.monotonic()
    done = 0
    hidden = arguments.json or not sys.stderr.isatty()
    with tqdm(total=total, desc=split, unit=" images", disable=hidden) as bar:

        def on_shard(images: int, written: bool) -> None:
            nonlocal done
            if written:
                done += images
                bar.update(images)
            elif not bar.disable:
                # Images of an earlier run do not count for the rate.
                bar.initial += images
                bar.n += images
                bar.refresh()

        manifest = convert_listing(
            conversion,
            arguments.output,
            workers=workers,
            limit=limit,
            part=part,
            quarantine=arguments.quarantine,
            on_shard=on_shard,
        )
    seconds = time.monotonic() - begin
    if manifest is None:
        report_part(conversion.listing, part, total, done, seconds, arguments)
        return EXIT_CLEAN
    state: dict[str, object] = {
        "state": "written" if done else "present",
        "seconds": round(seconds, 1),
        "warnings": conversion.listing.warnings,
    }
    if done:
        state["images_per_second"] = round(done / seconds, 1)
    return report_split(arguments.output, manifest, limit, state, as_json=arguments.json)


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
