"""The configuration of a run for which only the folder of its shards is given."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_shards.errors import DataShardsError
from data_shards.format.manifest import MANIFEST_NAME, Manifest, load_manifest, load_split
from data_shards.format.samples import FORMATS, read_image
from data_shards.litter import children
from rebias_dist.config.data import is_address
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError, DataError

_LOOKED_AT = 100  # training images whose size is read
_SMALL = 32  # pixels; simple_convnet is for images up to this side
_BATCH = int(Config.model_fields["global_batch"].default)
_SHOWN = 10  # names of classes and values in a line


def read_from(root: str) -> tuple[dict[str, Any], list[str]] | None:
    """Return the values of a configuration that fits the shards in a folder, and lines about it.

    Whatever the shards do not say has its default. Images of different sizes are cropped, and
    images larger than 32 pixels are for ResNet-18 against BagNet-18. With fewer training images
    than the default global batch has, the global batch is smaller.

    Args:
        root: with a folder for each split: ``train``, perhaps ``selection``, and tests.

    Returns:
        The values and the lines; None for Biased-MNIST, for which the default configuration is.

    Raises:
        ConfigError: there is no split ``train``, or no test split; or the root is an address.
        DataError: the training split is damaged.
    """
    if is_address(root):
        raise ConfigError(
            f"data.root: {root} is an address, whose splits cannot be listed; add --config NAME_OR_"
            "FILE, and unless that says them --data.dataset NAME and --data.test_splits '[test]'"
        )
    splits = [path.parent.name for path in children(Path(root), f"*/{MANIFEST_NAME}")]
    if "train" not in splits:
        there = f"only {', '.join(splits)}" if splits else "no shards"
        raise ConfigError(
            f"data.root: {root} has no split 'train', {there}; give the folder that has the "
            "folders of the splits, or a --config"
        )
    try:
        manifest = load_manifest(Path(root) / "train")
        if manifest.dataset == "biased_mnist":
            return None
        sizes = _sizes(Path(root) / "train")
    except DataShardsError as error:
        raise DataError(str(error)) from None
    tests = [split for split in splits if split not in ("train", "selection")]
    if not tests:
        raise ConfigError(f"data.root: {root} has no test split beside {', '.join(splits)}")
    held_out = "selection" in splits
    data: dict[str, Any] = {"dataset": manifest.dataset, "root": root, "test_splits": tests}
    values: dict[str, Any] = {"data": data, "evaluate": {"monitor": tests[0]}}
    if not held_out:
        data["selection"] = "none"
    if len(sizes) > 1:
        data["augmentation"] = "crop_flip"
    if not _are_small(sizes):
        values |= {"f": {"name": "resnet18"}, "g": [{"name": "bagnet18"}]}
    lines = _lines(root, manifest, tests, held_out, sizes)
    if manifest.samples < _BATCH:
        # A multiple of 32, the default micro-batch, where there are as many images.
        n = values["global_batch"] = manifest.samples // 32 * 32 or manifest.samples
        lines.append(
            f"global batch {n}, for there are fewer than {_BATCH} training images, unless "
            "--global_batch is given"
        )
    return values, lines


def _lines(
    root: str, manifest: Manifest, tests: list[str], held_out: bool, sizes: list[tuple[int, int]]
) -> list[str]:
    named = ", ".join(manifest.classes[:_SHOWN]) + (", …" if manifest.classes[_SHOWN:] else "")
    lines = [
        f"no --config given, so this is read from {root}:",
        f"data set {manifest.dataset}, {len(manifest.classes)} classes ({named}), "
        f"{manifest.samples:,} training images, test splits {', '.join(tests)}",
    ]
    if attributes := ", ".join(attribute.name for attribute in manifest.attributes):
        lines.append(f"attributes {attributes}; the first is the bias unless --data.bias is given")
    if not held_out:
        lines.append(
            f"no split 'selection', so the test split {tests[0]} chooses the best checkpoint, an "
            "oracle; report the last one"
        )
    shown = " to ".join(f"{w} × {h}" for w, h in dict.fromkeys((sizes[0], sizes[-1])))
    crop = "; they differ, so data.augmentation is crop_flip" if len(sizes) > 1 else ""
    lines.append(f"images of {shown} pixels{crop}")
    f, g = ("simple_convnet",) * 2 if _are_small(sizes) else ("resnet18", "bagnet18")
    lines.append(f"f {f}, g {g} unless --f.name and --g.0.name are given")
    return lines


def _are_small(sizes: list[tuple[int, int]]) -> bool:
    """Return whether the images are for simple_convnet: small, and all of one size."""
    return len(sizes) == 1 and max(sizes[0]) <= _SMALL


def _sizes(folder: Path) -> list[tuple[int, int]]:
    """Return the sizes (width, height) of images spread over a split, each once, ascending."""
    manifest, index = load_split(folder)
    found = set()
    for i in np.unique(np.linspace(0, len(index) - 1, _LOOKED_AT, dtype=np.int64)):
        try:
            content = read_image(folder, manifest, index[i])
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                found.add(image.size)
        except Exception:  # Pillow raises many kinds of errors on hostile bytes
            continue  # training says what to do about damaged images
    if not found:
        raise DataShardsError(f"{folder}: has no readable image; make the shards again")
    return sorted(found)
