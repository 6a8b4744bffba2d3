"""Plan a conversion: decide which image goes into which shard before any image is read."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import Option
from data_shards.format.tars import BLOCK, padding
from data_shards.format.writer import Plan, check_sample
from data_shards.images.resize import encoder
from data_shards.ordering import permutation
from data_shards.sources.listing import Item, Listing

_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_MOST_SHARDS = 1_000_000  # numbers of six digits
_LARGEST_SIDE = 8192
# Three headers, a block for the class, nearly always one for the JSON.
_OVERHEAD = 5 * BLOCK


@dataclass(frozen=True)
class Options:
    """The options that decide the shards, besides the listing; UsageError if out of range.

    A shard ends after ``samples_per_shard`` images, or before it would have more than
    ``bytes_per_shard`` bytes, by the sizes of the source's files. Images whose short side has more
    than ``resize`` pixels are stored with a short side of ``resize``, as JPEGs of ``quality``.
    ``exclude_suspect``: leave out images that are odd but whole.
    """

    seed: int = 0
    samples_per_shard: int = 1000
    bytes_per_shard: int | None = None
    resize: int | None = None
    quality: int = 90
    exclude_suspect: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (
            ("samples_per_shard", 1, 1_000_000),
            ("bytes_per_shard", 1, None),
            ("resize", 1, _LARGEST_SIDE),
            ("quality", 1, 100),
        ):
            value = getattr(self, name)
            if value is not None and (value < low or (high is not None and value > high)):
                limits = f"between {low} and {high}" if high is not None else f"at least {low}"
                raise UsageError(f"--{name.replace('_', '-')} is {value}, but must be {limits}")

    def stored(self) -> dict[str, Option]:
        """Return the options as the manifest holds them, without samples_per_shard."""
        stored: dict[str, Option] = {"seed": self.seed}
        if self.bytes_per_shard is not None:
            stored["bytes_per_shard"] = self.bytes_per_shard
        if self.resize is not None:
            # Another version of the encoder may write other bytes; a split must not mix both.
            stored |= {"resize": self.resize, "quality": self.quality, "encoder": encoder()}
        if self.exclude_suspect:
            stored["exclude_suspect"] = True
        return stored


@dataclass(frozen=True)
class Conversion:
    """A listing with options; both alone decide what each shard holds."""

    listing: Listing
    options: Options

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Positions in the listing, in the order of the shards."""
        listing = self.listing
        return permutation(
            len(listing.items), "convert", listing.dataset, listing.split, self.options.seed
        )

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """Where in ``order`` each shard begins, and the end; int64 [shards + 1]."""
        lengths = [self.listing.items[i].length for i in self.order]
        return _bounds(lengths, self.options.samples_per_shard, self.options.bytes_per_shard)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.bounds) - 1

    def items(self, shard: int) -> list[Item]:
        """Return the images of a shard in their order."""
        chosen = self.order[self.bounds[shard] : self.bounds[shard + 1]]
        return [self.listing.items[i] for i in chosen]

    def part(self, number: int, parts: int) -> range:
        """Return the shards of part ``number`` (from 1) of ``parts``."""
        return range(number - 1, self.shards, parts)

    @cached_property
    def plan(self) -> Plan:
        """The plan of the split; its recipe identifies the work, wherever the source lies.

        Sources with equal recipes have the same names and sizes of images in the same order.
        """
        listing = self.listing
        facts: Mapping[str, Option] = listing.facts
        return Plan(
            dataset=listing.dataset,
            split=listing.split,
            classes=listing.classes,
            options={**facts, **self.options.stored(), "plan_sha256": self._digest()},
            normalize=listing.normalize,
            samples_per_shard=self.options.samples_per_shard,
        )

    def check(self) -> None:
        """Raise an error if there is nothing to convert, or a key or a label is not valid."""
        listing = self.listing
        if not listing.items:
            raise UsageError(f"{listing.dataset} {listing.split}: there are no images")
        if self.shards > _MOST_SHARDS:
            raise UsageError(f"there would be {self.shards} shards: more than {_MOST_SHARDS}")
        if not _SPLIT.fullmatch(listing.split):
            raise UsageError(f"the split {listing.split!r} is no name for a folder")
        keys = set()
        for item in listing.items:
            check_sample(item.key, item.label, item.source, len(listing.classes))
            if item.key in keys:
                raise DataShardsError(f"{item.source}: the key {item.key!r} is already taken")
            keys.add(item.key)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        if self.listing.attributes:
            digest.update(f"{list(self.listing.attributes.items())}\n".encode())
        for shard in range(self.shards):
            lines = ["\0".join(_fields(item)) for item in self.items(shard)]
            digest.update(f"{shard} {len(lines)}\n".encode())
            digest.update("\n".join(lines).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def _fields(item: Item) -> list[str]:
    fields = [item.source, item.key, str(item.label), item.wnid, str(item.length)]
    fields.append(",".join(item.flags))
    # Without attributes the digest is that of versions that had none.
    return [*fields, ",".join(map(str, item.attributes))] if item.attributes else fields


def stored_bytes(length: int) -> int:
    """Estimate the bytes that an image of ``length`` bytes takes in a shard."""
    return length + padding(length) + _OVERHEAD


def _bounds(lengths: list[int], samples: int, most: int | None) -> NDArray[np.int64]:
    if most is None:
        starts = list(range(0, len(lengths), samples))
    else:
        starts = []
        room = count = 0
        for number, length in enumerate(lengths):
            size = stored_bytes(length)
            # The first image begins a shard; so does one that is too large for any shard.
            if not starts or size > room or count == samples:
                starts.append(number)
                room, count = most, 0
            room -= size
            count += 1
    return np.array([*starts, len(lengths)], dtype=np.int64)
