"""Copy the images that a conversion leaves out, so that somebody can look at them.

The copy of a regular file has the name of its key. A link, a device and a file that cannot be read
have none.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from data_shards.format.manifest import Manifest, load_index
from data_shards.images.examine import IMAGE_SUFFIXES
from data_shards.sources.listing import Item, Listing
from data_shards.system.files import naming, regular_descriptor, temporary_file

_BLOCK = 1 << 20  # bytes that are copied at a time: a file may be larger than the memory


class _UnreadableError(Exception):
    """The file cannot be read to its end."""


def copy_refused(listing: Listing, folder: Path) -> None:
    """Copy the files that were refused before any was read: by name, or for lack of a class."""
    folder.mkdir(parents=True, exist_ok=True)
    for item in listing.refused:
        copy_out(item, folder)


def copy_missing(listing: Listing, folder: Path, published: Path, manifest: Manifest) -> None:
    """Copy the images that the split ``published`` from this listing lacks."""
    if not manifest.excluded:
        return
    kept = set(load_index(published, manifest)["key"].tolist())
    for item in listing.items:
        if item.key.encode() not in kept:
            copy_out(item, folder)


def copy_out(item: Item, folder: Path, on_block: Callable[[], object] = lambda: None) -> None:
    """Copy the file of one image, whatever its size; one that cannot be read has no copy.

    ``on_block`` is called after each MiB.
    """
    suffix = Path(item.source).suffix.lower()
    copy = folder / (item.key + (suffix if suffix in IMAGE_SUFFIXES else ".bin"))
    try:
        with naming(copy), temporary_file(folder, copy.name) as (temporary, file):
            for block in _blocks(item):
                file.write(block)
                on_block()
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(copy)
    except _UnreadableError:
        return


def _blocks(item: Item) -> Iterator[bytes]:
    try:
        with open(regular_descriptor(Path(item.path)), "rb", buffering=0) as file:
            position, end = item.offset, item.offset + item.length
            while position < end:
                block = os.pread(file.fileno(), min(_BLOCK, end - position), position)
                if not block:
                    raise _UnreadableError
                yield block
                position += len(block)
    except OSError:
        raise _UnreadableError from None
