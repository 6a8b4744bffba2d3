"""Say what became of a split: for people as lines, for machines as JSON."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import EXIT_CLEAN, EXIT_FINDINGS, DataShardsError
from data_shards.findings import Finding, count_images, shown_count
from data_shards.format.manifest import Manifest

if TYPE_CHECKING:
    from data_shards.convert.publish import Limit
    from data_shards.sources.listing import Listing

_SHOWN = 10


def report_empty(listings: Sequence[Listing], limit: Limit, arguments: argparse.Namespace) -> int:
    """Report splits of which no image was taken, before others are converted; return the code.

    DataShardsError if ``limit`` allows no such loss.
    """
    from data_shards.convert.publish import Tally

    for listing in listings:
        limit.check(Tally.of(listing.findings))
        path = arguments.output / listing.split
        if arguments.json:
            for finding in listing.findings:
                print(finding.to_json())
            summary = {
                "split": listing.split,
                "path": str(path),
                "state": "empty",
                "samples": 0,
                "excluded": sum(finding.images or 1 for finding in listing.findings),
                "warnings": listing.warnings,
            }
            print(json.dumps(summary))
        else:
            print(f"{path}: nothing to write, because no image of this split was taken")
            print_left_out(listing.findings)
    return EXIT_FINDINGS if listings else EXIT_CLEAN


def report_part(
    listing: Listing,
    part: tuple[int, int],
    total: int,
    done: int,
    seconds: float,
    arguments: argparse.Namespace,
) -> None:
    """Say that a part of the shards of a split is written."""
    name, split = f"{part[0]}/{part[1]}", listing.split
    if arguments.json:
        print(
            json.dumps(
                {
                    "split": split,
                    "path": str(arguments.output / split),
                    "state": "part",
                    "part": name,
                    "images": total,
                    "seconds": round(seconds, 1),
                    "warnings": listing.warnings,
                }
            )
        )
        return
    print(
        f"{arguments.output / split}: part {name} is complete, {total:,} images "
        f"({done:,} in this run, {done / seconds:,.0f}/s); publish all parts with "
        f"'python -m data_shards merge {arguments.output} --split {split}'"
    )


def report_split(
    output: Path, manifest: Manifest, limit: Limit, state: dict[str, object], *, as_json: bool
) -> int:
    """Print the findings and a summary of a published split; return the exit code."""
    from data_shards.convert.publish import FINDINGS_NAME
    from data_shards.system.files import parse_json, read_regular

    folder = output / manifest.split
    findings = []
    if FINDINGS_NAME in manifest.files:
        path = folder / FINDINGS_NAME
        try:
            for line in read_regular(path).splitlines():
                told = parse_json(line)
                findings.append(Finding(**{**told, "reasons": tuple(told["reasons"])}))
        except (ValueError, KeyError, TypeError):
            raise DataShardsError(f"{path}: damaged; 'rebias-shards verify' says more") from None
    verdicts: Counter[str] = Counter()
    # An archive with another md5 may have whole images that are not the published ones.
    others = [finding for finding in findings if "md5-mismatch" in finding.reasons]
    for finding in findings:
        if finding not in others:
            verdicts[finding.verdict] += finding.images or 1
    left_out = [finding for finding in findings if finding.verdict in ("corrupt", "refused")]
    if as_json:
        for finding in findings:
            print(finding.to_json())
        summary = {
            "split": manifest.split,
            "path": str(folder),
            **state,
            "samples": manifest.samples,
            "shards": len(manifest.shards),
            "bytes": sum(shard.bytes for shard in manifest.shards),
            "excluded": sum(excluded.images or 1 for excluded in manifest.excluded),
            **{name: verdicts[name] for name in ("corrupt", "refused", "suspect", "duplicate")},
            "digest": manifest.digest,
        }
        print(json.dumps(summary))
    else:
        rate = f", {state['images_per_second']:,} images/s" if "images_per_second" in state else ""
        size = sum(shard.bytes for shard in manifest.shards) / 1e9
        print(
            f"{folder}: {state['state']}, {manifest.samples:,} images in "
            f"{len(manifest.shards):,} shards, {size:.2f} GB{rate}"
        )
        _print_findings(manifest, verdicts, folder / FINDINGS_NAME)
        for finding in others:
            print(f"  not the published archive: {finding.path} has another md5")
    images = manifest.samples + sum(excluded.images for excluded in manifest.excluded)
    holds = limit.holds(count_images(finding.images for finding in left_out), images)
    return EXIT_CLEAN if holds and not others else EXIT_FINDINGS


def _print_findings(manifest: Manifest, verdicts: Counter[str], path: Path) -> None:
    print_left_out(
        [Finding(e.source, "refused", e.reasons, images=e.images) for e in manifest.excluded]
    )
    kept = [f"{verdicts[name]:,} {name}" for name in ("suspect", "duplicate") if verdicts[name]]
    if kept:
        print(f"  found: {', '.join(kept)}; {path}")


def print_left_out(findings: Sequence[Finding]) -> None:
    """Print how many images were left out, and the first of them with the reasons."""
    if findings:
        print(f"  left out: {shown_count([finding.images for finding in findings])}")
    for finding in findings[:_SHOWN]:
        many = f" ({finding.images:,} images)" if finding.images > 1 else ""
        print(f"    {finding.path}: {', '.join(finding.reasons)}{many}")
    if len(findings) > _SHOWN:
        print(f"    and {len(findings) - _SHOWN:,} more")


def report_training(output: Path, attributes: Sequence[str]) -> None:
    """Print the command that trains on the splits of ``output``, which has a split train.

    With several attributes it names the first; the others are named behind it.
    """
    command = ["rebias-train", "--data.root", str(output)]
    others = ""
    if len(attributes) > 1:
        command += ["--data.bias", attributes[0]]
        others = f"   (or --data.bias {', '.join(attributes[1:])})"
    print(f"train on it: {shlex.join(command)}{others}")


def report_overlaps(output: Path, workers: int, *, as_json: bool) -> None:
    """Compare the splits of ``output`` and print which images occur in several."""
    from data_shards.audit.overlaps import DUPLICATES_NAME, write_overlaps

    findings = write_overlaps(output, workers)
    if as_json:
        for finding in findings:
            print(finding.to_json())
    elif findings:
        print(
            f"{output}: {len(findings):,} images also occur in another split (kept); "
            f"{output / DUPLICATES_NAME}"
        )
