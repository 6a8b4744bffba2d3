"""The list of images to convert, before any of them is read."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.errors import DataShardsError
from data_shards.findings import Finding
from data_shards.format.manifest import Normalize, Option
from data_shards.system.files import regular_descriptor

IMAGENET_NORMALIZE = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Item:
    """One image: ``length`` bytes at ``offset`` of the regular file ``path``.

    ``source`` is its path relative to the source, with ``/`` between the parts; a tar is one
    of them: ``train.tar/n01440764.tar/n01440764_18.JPEG``. ``key`` is
    its name in the shards: unique in the split, at most 90 bytes, without a dot. ``wnid`` is
    the id of the source's class, ``""`` if it has none; ``label`` the number of the class in
    the data set. ``flags`` are facts known from the source, such as ``stylised``.
    ``attributes`` are the ids of its values of the listing's attributes, -1 for none.
    """

    source: str
    key: str
    label: int
    wnid: str
    path: str
    offset: int
    length: int
    flags: tuple[str, ...] = ()
    attributes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listing:
    """One split of a data set, in a fixed order that does not depend on the machine.

    ``facts`` go into the manifest. They describe the source, for example with an archive's
    md5, but have no path of this machine. ``findings`` are the files that were not taken;
    ``warnings`` are lines for the user, for example about a class without images. ``attributes``
    are the names of the values of each attribute by id; the first attribute is the bias.
    ``refused`` are the regular files of the findings; their keys are those of no image.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    normalize: Normalize = IMAGENET_NORMALIZE
    facts: Mapping[str, Option] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: tuple[Item, ...] = ()


def listing_digest(items: Sequence[Item]) -> str:
    """Return the sha256 of keys, labels and lengths in order, which identifies a source."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.key}\0{item.label}\0{item.length}\n".encode())
    return digest.hexdigest()


def read_item(item: Item) -> bytes:
    """Return the bytes of an image; DataShardsError if its file is not what was listed.

    Never blocks: a FIFO or a device in place of the file is refused.
    """
    try:
        with open(regular_descriptor(Path(item.path)), "rb", buffering=0) as file:
            content = os.pread(file.fileno(), item.length, item.offset)
    except OSError as error:
        raise DataShardsError(f"{item.source}: cannot be read ({error.strerror})") from None
    if len(content) != item.length:
        raise DataShardsError(f"{item.source}: has become shorter since it was listed")
    return content
