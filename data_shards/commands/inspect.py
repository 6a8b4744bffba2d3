"""Show the content of shards: counts per class, sizes, formats, left-out images, a contact sheet.

DIR is a split (the folder of a manifest.json) or a folder of splits, not an address. inspect
reads the facts that are stored with the images, not the images; verify checks their bytes and
hashes.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from data_shards.audit.inspect import Inspection, Spread
from data_shards.errors import EXIT_CLEAN, UsageError
from data_shards.findings import shown_count

EXAMPLE = """
python -m data_shards inspect data/imagenet9
python -m data_shards inspect data/imagenet9/train --contact-sheet train.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``inspect``."""
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE.png",
        help="write a picture of up to 8 images of each class; with several splits, one picture "
        "each, FILE-<split>.png",
    )
    parser.add_argument(
        "--excluded", action="store_true", help="list every image that was left out"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a split")


def run(arguments: argparse.Namespace) -> int:
    """Inspect each split."""
    from data_shards.audit.inspect import contact_sheet, inspect_split
    from data_shards.format.manifest import load_split
    from data_shards.format.samples import split_folders
    from data_shards.system.files import write_synced

    folders = split_folders(arguments.folder)
    picture: Path | None = arguments.contact_sheet
    if picture is not None and not picture.parent.is_dir():
        raise UsageError(f"{picture.parent}: there is no such folder for the contact sheet")
    for folder in folders:
        manifest, index = load_split(folder)
        found = inspect_split(folder, manifest, index)
        if arguments.json:
            excluded = [left_out.model_dump() for left_out in found.left_out]
            listed = {"excluded_images": excluded} if arguments.excluded else {}
            print(json.dumps({"path": str(folder), **found.to_dict(), **listed}))
        else:
            print(_text(folder, found, listed=arguments.excluded))
        if picture is not None:
            path = picture
            if len(folders) > 1:
                path = picture.with_name(f"{picture.stem}-{manifest.split}{picture.suffix}")
            write_synced(path, contact_sheet(folder, manifest, index))
            if not arguments.json:
                print(f"  contact sheet  {path}\n")
    return EXIT_CLEAN


def _text(folder: Path, found: Inspection, *, listed: bool) -> str:
    per_class = list(found.class_counts.values())
    total = found.shard_bytes
    lines = [
        f"{folder}: {found.dataset} {found.split}, {found.samples} images",
        f"  shards         {found.shards}; each {_spread(found.shard_samples)} images, "
        f"{_spread(total, 1e6)} MB",
        f"  classes        {len(per_class)}; each {_spread(Spread.of(per_class))} images",
        f"  formats        {_counts(found.formats)}",
        f"  width          {_spread(found.widths)} pixels",
        f"  height         {_spread(found.heights)} pixels",
        f"  image file     {_spread(found.image_bytes, 1e3)} kB",
        f"  flags          {_counts(found.flags)}",
        f"  left out       {shown_count([left_out.images for left_out in found.left_out])}"
        + (f" ({_counts(found.excluded)})" if found.left_out else ""),
    ]
    if listed:
        lines += [f"    {left.source}: {' '.join(left.reasons)}" for left in found.left_out]
    head = max(5, *(len(name) for name in found.class_counts))
    biases = len(found.bias_counts[0]) if found.bias_counts else 0
    columns = "".join(f"{f'bias {bias}':>9}" for bias in range(biases))
    lines.append(f"  {'label':>5}  {'class':<{head}}  {'images':>9}{columns}")
    for label, (name, count) in enumerate(found.class_counts.items()):
        cells = "".join(f"{n:>9}" for n in found.bias_counts[label]) if biases else ""
        lines.append(f"  {label:>5}  {name:<{head}}  {count:>9}{cells}")
    return "\n".join(lines) + "\n"


def _spread(spread: Spread, unit: float = 1) -> str:
    least, middle, most = (
        f"{value / unit:.1f}".removesuffix(".0")
        for value in (spread.least, spread.median, spread.most)
    )
    return least if least == most else f"{least} to {most} (median {middle})"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
