"""What there is to convert: a list of images, before any of them is read."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from data_shards.errors import DataShardsError
from data_shards.findings import Finding
from data_shards.format.manifest import Normalize, Option

IMAGENET_NORMALIZE = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Item:
    """One image: ``length`` bytes at ``offset`` of the regular file ``path``.

    ``source`` says where it came from, relative to the source and with ``/`` between the
    parts, a tar being one of them: ``train.tar/n01440764.tar/n01440764_18.JPEG``. ``key`` is
    its name in the shards: unique in the split, at most 90 bytes, without a dot. ``wnid`` is
    the id of the source's class, ``""`` if it has none; ``label`` the number of the class in
    the data set. ``flags`` are facts known from the source, such as ``stylised``.
    """

    source: str
    key: str
    label: int
    wnid: str
    path: str
    offset: int
    length: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """One split of a data set, in a fixed order that does not depend on the machine.

    ``facts`` go into the manifest: what the source was, such as an archive's md5, but no
    path of this machine. ``findings`` are the files that were not taken, ``warnings`` lines
    for a person, such as a class without images.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    normalize: Normalize = IMAGENET_NORMALIZE
    facts: Mapping[str, Option] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()


def read_item(item: Item) -> bytes:
    """Return the bytes of an image; DataShardsError if its file is not what was listed.

    Opens regular files alone and never blocks: a FIFO or a device that took the place of a
    file is refused.
    """
    try:
        descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DataShardsError(f"{item.source}: cannot be read ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataShardsError(f"{item.source}: is no regular file")
        content = os.pread(descriptor, item.length, item.offset)
    except OSError as error:
        raise DataShardsError(f"{item.source}: cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if len(content) != item.length:
        raise DataShardsError(f"{item.source}: has become shorter since it was listed")
    return content
