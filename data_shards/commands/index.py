"""Make a split of WebDataset tars that were made elsewhere, without rewriting them.

Every image is examined as convert does; damaged ones are listed and left out of the index. The
manifest and the index go beside the tars, whose folder is then a split for training, verify and
inspect. With --output they go to DIR/<split>, with hard links to the tars, which take no space.

A sample has one image (.jpg, .jpeg, .png, .webp) and a label: the number or the name of its class
in .cls, in a field of .json (--label-field), or as its folder inside the tar.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.commands.shared import (
    add_limit_arguments,
    add_workers_argument,
    parse_limit,
    words_of,
    workers_of,
)
from data_shards.errors import UsageError

if TYPE_CHECKING:
    from data_shards.classes import ClassMap

EXAMPLE = """
python -m data_shards index 'cats/train/*.tar' --dataset cats --classes cats.csv
python -m data_shards index 'in1k-{0000..1023}.tar' --dataset imagenet1k --classes imagenet1k
"""

_SHIPPED = {"imagenet1k": "imagenet1k", "imagenet9": "imagenet9", "imagenet-a": "imagenet_a"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_TAR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``index``."""
    parser.add_argument(
        "tars",
        nargs="+",
        metavar="PATTERN",
        help="tars in the order of the split; quoted patterns may have {000..099}, {a,b}, * and ?",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the data set")
    parser.add_argument(
        "--classes",
        required=True,
        metavar="FILE",
        help="CSV with the column wnid (the class as the tars name it), optionally class and "
        f"label; or {', '.join(_SHIPPED)}",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="default: the name of the tars' folder; with --output, what the names of the tars "
        "have in common before their numbers, or the folder's name if that is nothing",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the split's folder")
    parser.add_argument(
        "--label-field", metavar="FIELD", help="the field of a sample's .json with its class"
    )
    parser.add_argument(
        "--attributes",
        metavar="FIELD,…",
        help="fields of a sample's .json that a network may take for the class; the first is the "
        "bias label",
    )
    add_workers_argument(parser)
    add_limit_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Index the tars and report the split."""
    from tqdm import tqdm

    from data_shards.commands.reports import report_overlaps, report_split, report_training
    from data_shards.convert.foreign import Reading
    from data_shards.convert.index import Indexing, index_tars
    from data_shards.convert.publish import Limit
    from data_shards.sources.datasets import TRAIN

    if not _NAME.fullmatch(arguments.dataset):
        raise UsageError(
            f"--dataset {arguments.dataset}: a name may have only letters, digits, '_' and '-'"
        )
    fields = tuple(words_of("--attributes", arguments.attributes))
    for name in fields:
        if not _FIELD.fullmatch(name):
            raise UsageError(
                f"--attributes {arguments.attributes}: {name!r} must be a name of letters, digits, "
                "'_' and '-' that begins with a letter"
            )
    tars = expanded(arguments.tars)
    folder = _folder(tars, arguments.split, arguments.output)
    reading = Reading(_classes(arguments.classes), arguments.label_field, fields)
    indexing = Indexing(arguments.dataset, tars, folder, reading)
    workers = workers_of(arguments)
    limit = Limit(parse_limit(arguments.max_corrupt), f"--max-corrupt {arguments.max_corrupt}")
    begin = time.monotonic()
    with tqdm(
        total=sum(path.stat().st_size for path in tars),
        desc=folder.name,
        unit="B",
        unit_scale=True,
        disable=arguments.json or not sys.stderr.isatty(),
    ) as bar:
        manifest, is_new = index_tars(indexing, workers=workers, limit=limit, on_tar=bar.update)
    seconds = max(time.monotonic() - begin, 1e-3)
    state: dict[str, object] = {
        "state": "indexed" if is_new else "present",
        "seconds": round(seconds, 1),
    }
    if is_new:
        state["images_per_second"] = round(manifest.samples / seconds, 1)
    code = report_split(folder.parent, manifest, limit, state, as_json=arguments.json)
    report_overlaps(folder.parent, workers, as_json=arguments.json)
    if manifest.split == TRAIN and not arguments.json:
        report_training(folder.parent, [attribute.name for attribute in manifest.attributes])
    return code


def expanded(patterns: list[str]) -> list[Path]:
    """Return the tars that patterns name, in their order; UsageError if one is missing or odd."""
    from braceexpand import braceexpand

    tars: list[Path] = []
    for pattern in patterns:
        try:
            names = list(braceexpand(pattern))
        except ValueError:
            raise UsageError(f"{pattern}: a brace has no partner") from None
        for name in names:
            found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
            if not found:
                raise UsageError(f"{name}: there are no such tars")
            tars += map(Path, found)
    for path in tars:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such tar")
        if not _TAR.fullmatch(path.name):
            raise UsageError(
                f"{path}: must be named NAME.tar, with letters, digits, '_', '.' and '-'"
                + ("; unpack it" if ".tar." in path.name or path.name.endswith(".tgz") else "")
            )
    tars = [Path(os.path.abspath(path)) for path in tars]
    twice = [name for name, count in Counter(path.name for path in tars).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]}: two tars have this name; the names must differ")
    return tars


def _folder(tars: list[Path], split: str | None, output: Path | None) -> Path:
    """Return the folder of the split, which exists only if it is that of the tars."""
    from data_shards.litter import children

    folders = {path.parent for path in tars}
    if output is not None:
        common = tars[0].stem
        while not all(path.name.startswith(common) for path in tars):
            common = common[:-1]
        of_folder = tars[0].parent.name if len(folders) == 1 else common
        name = split or common.rstrip("0123456789").rstrip("-_.") or of_folder
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for a split; give --split")
        folder = Path(os.path.abspath(output)) / name
        if folder in folders:
            raise UsageError(f"{folder}: the tars lie there already; leave --output out")
        return folder
    if len(folders) > 1:
        raise UsageError("the tars lie in several folders; give --output")
    (folder,) = folders
    if split not in (None, folder.name):
        raise UsageError(
            f"--split {split}: the folder of the tars is {folder.name}, and it becomes the split; "
            "rename it, or give --output"
        )
    others = {path.name for path in children(folder, "*.tar")} - {path.name for path in tars}
    if others:
        raise UsageError(
            f"{folder}: also has {min(others)}, but a split has all tars of its folder; give them "
            "all, or --output"
        )
    return folder


def _classes(given: str) -> ClassMap:
    from data_shards.classes import load_class_map, shipped_class_map

    if given in _SHIPPED:
        return shipped_class_map(_SHIPPED[given])
    return load_class_map(Path(given))
