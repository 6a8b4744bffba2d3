"""The configuration of a run for which only the place of its shards is given."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_shards.errors import DataShardsError
from data_shards.format.manifest import MANIFEST_NAME, Manifest, load_split
from data_shards.format.samples import FORMATS, read_image
from data_shards.litter import children
from rebias_dist.config.data import CACHE_GB, is_address
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError, DataError

_LOOKED_AT = 100  # images of a split whose size is read
_SMALL = 32  # pixels; simple_convnet is for images up to this side
_BATCH = int(Config.model_fields["global_batch"].default)
_SHOWN = 10  # names of classes and values in a line


@dataclass(frozen=True)
class _Found:
    """The training split of a data set, and the names of all its splits."""

    manifest: Manifest
    splits: list[str]
    sizes: list[tuple[int, int]]
    """Of the images that were read in all splits: width and height, each once, ascending."""


def read_from(
    root: str, tests: Sequence[str] = (), cache_gb: float = CACHE_GB
) -> tuple[dict[str, Any], list[str]] | None:
    """Return the values of a configuration that fits some shards, and lines about it.

    Whatever the shards do not say has its default. Images of different sizes are cropped, and
    images larger than 32 pixels are for ResNet-18 against BagNet-18. With fewer training images
    than the default global batch has, the global batch is smaller.

    Args:
        root: folder or address with a folder for each split: ``train``, perhaps ``selection``, and
            tests. At an address the sizes are those of the images in the first shard.
        tests: the test splits, where the user names them.
        cache_gb: gigabytes that fetched shards may take.

    Returns:
        The values and the lines; None for Biased-MNIST, for which the default configuration is.

    Raises:
        ConfigError: there is no split ``train``, or no test split; or the root cannot be read.
        DataError: a split is damaged, or no training image can be read.
        RebiasError: a server does not answer.
    """
    found = _at_address(root, tests, cache_gb) if is_address(root) else _in_folder(root, tests)
    if found is None:
        return None
    manifest, splits, sizes = found.manifest, found.splits, found.sizes
    named = list(tests) or [split for split in splits if split not in ("train", "selection")]
    if not named:
        raise ConfigError(
            f"data.root: {root} has no test split beside {', '.join(splits)}{_tried(root)}; "
            "convert one too, as with --hold-out test=0.2, or give a --config"
        )
    held_out = "selection" in splits
    data: dict[str, Any] = {"dataset": manifest.dataset, "root": root, "test_splits": named}
    values: dict[str, Any] = {"data": data, "evaluate": {"monitor": named[0]}}
    if not held_out:
        data["selection"] = "none"
    if len(sizes) > 1:
        data["augmentation"] = "crop_flip"
    if not _are_small(sizes):
        values |= {"f": {"name": "resnet18"}, "g": [{"name": "bagnet18"}]}
    lines = _lines(root, manifest, named, held_out, sizes)
    if is_address(root) and not tests:
        lines.insert(2, f"splits found: {', '.join(splits)}{_tried(root)}")
    if manifest.samples < _BATCH:
        # A multiple of 32, the default micro-batch, where there are as many images.
        n = values["global_batch"] = manifest.samples // 32 * 32 or manifest.samples
        lines.append(
            f"global batch {n}, for there are fewer than {_BATCH} training images, unless "
            "--global_batch is given"
        )
    return values, lines


def _in_folder(root: str, tests: Sequence[str]) -> _Found | None:
    splits = [path.parent.name for path in children(Path(root), f"*/{MANIFEST_NAME}")]
    _check_train(root, splits)
    manifests, sizes = {}, {}
    try:
        for split in _used(splits, tests):
            folder = Path(root) / split
            manifest, index = load_split(folder)
            if manifest.dataset == "biased_mnist":
                return None
            manifests[split] = manifest
            sizes[split] = _sizes(index, partial(read_image, folder, manifest), DataShardsError)
    except DataShardsError as error:
        raise DataError(str(error)) from None
    return _Found(manifests["train"], splits, _all_sizes(root, sizes))


def _used(splits: Sequence[str], tests: Sequence[str]) -> list[str]:
    """Return the splits that a run reads, the training split first."""
    others = [s for s in splits if s != "train"]
    return ["train", *(s for s in others if s == "selection" or not tests or s in tests)]


def _at_address(root: str, tests: Sequence[str], cache_gb: float) -> _Found | None:
    # These import torch.
    from rebias_dist.data.shards import DamagedSample, ShardDataset
    from rebias_dist.data.split_names import splits_in

    splits = splits_in(root, ("train", "selection", *tests)) if tests else splits_in(root)
    _check_train(root, splits)
    manifests, sizes = {}, {}
    for split in _used(splits, tests):
        data = ShardDataset(f"{root}/{split}", cache_gb=cache_gb)
        if data.manifest.dataset == "biased_mnist":
            return None
        manifests[split] = data.manifest
        # More shards would be long in coming.
        first_shard = range(next(filter(None, data.manifest.shard_counts), 0))
        sizes[split] = _sizes(first_shard, data.read, DamagedSample)
    return _Found(manifests["train"], splits, _all_sizes(root, sizes))


def _check_train(root: str, splits: Sequence[str]) -> None:
    if "train" not in splits:
        there = f"only {', '.join(splits)}" if splits else "no shards"
        raise ConfigError(
            f"data.root: {root} has no split 'train', {there}; give the folder that has the "
            "folders of the splits, or a --config"
        )


def _tried(root: str) -> str:
    """Return the end of a line on the splits at an address, which cannot be listed."""
    if not is_address(root):
        return ""
    from rebias_dist.data.split_names import TRIED

    return f" (tried {', '.join(TRIED)}; name others with --data.test_splits '[NAME]')"


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
    looked_at = " in the first shard of each split" if is_address(root) else ""
    lines.append(f"images of {shown} pixels{looked_at}{crop}")
    f, g = ("simple_convnet",) * 2 if _are_small(sizes) else ("resnet18", "bagnet18")
    lines.append(f"f {f}, g {g} unless --f.name and --g.0.name are given")
    return lines


def _are_small(sizes: list[tuple[int, int]]) -> bool:
    """Return whether the images are for simple_convnet: small, and all of one size."""
    return len(sizes) == 1 and max(sizes[0]) <= _SMALL


def _sizes(
    images: Sequence[Any] | NDArray[np.void], read: Callable[[Any], bytes], damaged: type[Exception]
) -> set[tuple[int, int]]:
    """Return the sizes (width, height) of some images, spread over all of them.

    ``read`` returns the file of an image, or raises ``damaged``; training says what to do then.
    """
    found = set()
    for image in images[:: len(images) // _LOOKED_AT + 1]:
        try:
            content = read(image)
        except damaged:
            continue
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                found.add(opened.size)
        except Exception:  # Pillow raises many kinds of errors on hostile bytes
            continue
    return found


def _all_sizes(root: str, found: Mapping[str, set[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Return the sizes in all splits, each once, ascending."""
    if not found["train"]:
        raise DataError(f"{root}/train: has no readable image; make the shards again")
    return sorted(set().union(*found.values()))
