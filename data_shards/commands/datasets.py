"""The options of ``convert`` that choose the images, for all data sets but biased-mnist."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from data_shards.sources.datasets import SUMMARIES, custom, dataset
from data_shards.sources.folders import REENCODED_ENDINGS
from data_shards.sources.imagenet import SELECTION_FRACTION, listings
from data_shards.sources.listing import Listing

CUSTOM = "folder"
DATASETS = {**SUMMARIES, CUSTOM: "any other data set, with --classes, its class-map file"}

_EXAMPLES = {
    "imagenet1k": "--source ILSVRC2012_img_train.tar",
    "imagenet9": "--source ILSVRC2012_img_val.tar --labels ILSVRC2012_devkit_t12.tar.gz",
    "imagenet-a": "--source imagenet-a.tar",
    "imagenet9-a": "--source imagenet-a.tar",
    "imagenet-c": "--source blur.tar --split defocus_blur-3",
    "imagenet9-c": "--source blur.tar noise.tar weather.tar digital.tar",
    CUSTOM: "--name pets --classes pets.csv --source photos",
}


def example(name: str) -> str:
    """Return a command that converts the data set ``name`` of :data:`DATASETS`."""
    output = "pets" if name == CUSTOM else name
    return f"python -m data_shards convert {name} {_EXAMPLES[name]} --output shards/{output}"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options that :func:`listings_from` reads, except those of all data sets."""
    corrupted = name.endswith("-c")
    can_train = name == CUSTOM or dataset(name).can_train
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="archives (plain .tar, read in place), or folders of class folders or archives",
    )
    if corrupted:
        split = "<corruption>-<severity>, such as fog-3; default: all that are there"
    elif can_train:
        split = "train, selection (a part of the training images) or val; default: all there are"
        split = f"{split}; any name" if name == CUSTOM else split
    else:
        split = "default: the only one, test"
    parser.add_argument("--split", metavar="NAME", help=split)
    if name == CUSTOM:
        parser.add_argument("--name", required=True, help="name of the data set")
        parser.add_argument(
            "--classes",
            type=Path,
            required=True,
            metavar="FILE",
            help="CSV with the column wnid (the folder's name), optionally class and label",
        )
    if can_train:
        parser.add_argument(
            "--selection-fraction",
            type=float,
            default=SELECTION_FRACTION,
            metavar="PART",
            help="fraction of each class's training images that is held out for selection, unless "
            "there is a folder 'selection' beside them; --split train leaves them out, --split "
            "selection converts them; with 0 there is no such split; with 1 and --split selection, "
            "all of --source is selection data (default %(default)s)",
        )
        parser.add_argument(
            "--stylised",
            type=Path,
            nargs="+",
            action="extend",
            default=[],
            metavar="PATH",
            help="stylised copies that are added to train; they have the names of the originals",
        )
        parser.add_argument(
            "--labels",
            type=Path,
            metavar="FILE",
            help="the classes of images without class folders: the devkit "
            "(ILSVRC2012_devkit_t12.tar.gz), Kaggle's LOC_val_solution.csv or a CSV with the "
            "columns name,wnid; a name may be a path below the source. If no folder names the "
            "split, --split has just the images of that CSV; give the one of train for the splits "
            "train and selection (default: searched beside the source)",
        )
    parser.add_argument(
        "--no-md5",
        action="store_true",
        help="do not read whole archives to compute and compare their md5",
    )


def listings_from(arguments: argparse.Namespace) -> list[Listing]:
    """Return the listings that the options ask for; show a progress bar on a terminal.

    This also reads ``arguments.dataset``, the name of the data set, ``seed``, ``json`` and
    ``reencode``.
    """
    name = arguments.dataset
    chosen = custom(arguments.name, arguments.classes) if name == CUSTOM else dataset(name)
    if arguments.reencode:
        chosen = replace(chosen, endings=chosen.endings | REENCODED_ENDINGS)
    return listings(
        chosen,
        arguments.source,
        arguments.split,
        stylised=getattr(arguments, "stylised", []),
        selection_fraction=getattr(arguments, "selection_fraction", 0.0),
        seed=arguments.seed,
        verify_md5=not arguments.no_md5,
        labels=getattr(arguments, "labels", None),
        progress=not arguments.json and sys.stderr.isatty(),
    )
