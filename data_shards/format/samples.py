"""Read the samples of shards: images by their offset, facts by a walk through the tars."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import HASH_BYTES, INDEX_NAME, MANIFEST_NAME, Manifest
from data_shards.litter import children
from data_shards.system.files import open_regular, parse_json

_MOST_FACTS = 1_000_000  # bytes of one sample's JSON
_HEAD = 2**17  # bytes of an image, which nearly always have its size
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
FORMATS = tuple(_EXTENSIONS)
"""The formats of images in shards, as Pillow names them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts in the JSON of a sample, and the extension of its image."""

    key: str
    source: str
    wnid: str
    size: tuple[int, int]
    flags: tuple[str, ...]
    extension: str


def split_folders(folder: Path) -> list[Path]:
    """Return ``folder`` if it is a split, else its subfolders that are; UsageError if none is."""
    if (folder / MANIFEST_NAME).is_file():
        return [folder]
    found = [path.parent for path in children(folder, f"*/{MANIFEST_NAME}")]
    if not found:
        # A path has no '//'.
        away = re.match(r"(s3|gs|https?):/", str(folder))
        cure = "; an address is for training alone: give a folder of this machine" if away else ""
        raise UsageError(f"{folder}: no {MANIFEST_NAME} here or in a subfolder{cure}")
    return found


def folders_to_verify(folder: Path) -> list[Path]:
    """Return the splits that :func:`split_folders` finds, and those that lost their manifest.

    A folder with shards or an index must have been a split. UsageError if there is neither.
    """
    if os.path.lexists(folder / MANIFEST_NAME):
        return [folder]
    found = [path for path in children(folder, "*/") if _was_split(path)]
    if not found and _was_split(folder):
        return [folder]
    return found or split_folders(folder)


def _was_split(folder: Path) -> bool:
    names = (MANIFEST_NAME, INDEX_NAME)
    return any(os.path.lexists(folder / name) for name in names) or bool(children(folder, "*.tar"))


def read_image(folder: Path, manifest: Manifest, row: np.void) -> bytes:
    """Return the file of the image in a row of the index, after comparing it with its hash.

    DataShardsError, which names the shard and the key, if it cannot be read or differs.
    """
    path = folder / manifest.shards[row["shard"]].name
    where = f"{path}: {row['key'].decode(errors='replace')}"
    try:
        with open_regular(path) as file:
            file.seek(int(row["offset"]))
            content: bytes = file.read(int(row["length"]))
    except OSError as error:
        raise DataShardsError(f"{where}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).digest()[:HASH_BYTES] != row["hash"].tobytes():
        raise DataShardsError(f"{where}: is not the image that the index describes")
    return content


def walk_facts(folder: Path, manifest: Manifest, index: NDArray[np.void]) -> Iterator[Facts]:
    """Yield the facts of each sample, in the order of the index.

    Tars that another program wrote have no such facts: sizes and formats come from the headers of
    the images, ``source`` is the key below the name of the tar, and there are no flags.

    DataShardsError if a shard cannot be read, a sample has no facts or malformed ones, or the
    keys are not those of the index.
    """
    first = 0
    for shard in manifest.shards:
        rows = index[first : first + shard.count]
        first += shard.count
        path = folder / shard.name
        if manifest.is_indexed:
            yield from _facts_of_images(path, rows)
            continue
        keys = [key.decode(errors="replace") for key in rows["key"]]
        found = _facts_of(path)
        if sorted(found) != sorted(keys):
            raise DataShardsError(f"{path}: its samples are not those of the index")
        for key in keys:
            yield found[key]


def _facts_of_images(path: Path, rows: NDArray[np.void]) -> Iterator[Facts]:
    with open_regular(path) as file:
        for row in rows:
            key = row["key"].decode(errors="replace")
            begin, length = int(row["offset"]), int(row["length"])
            for some in (min(_HEAD, length), length):
                content = os.pread(file.fileno(), some, begin)
                try:
                    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                        size, extension = image.size, _EXTENSIONS[image.format or ""]
                    break
                except Exception:  # Pillow raises many kinds of errors on hostile bytes
                    if some == length:
                        raise DataShardsError(f"{path}: {key}: no image") from None
            yield Facts(key, f"{path.name}/{key}", "", size, (), extension)


def _facts_of(path: Path) -> dict[str, Facts]:
    texts: dict[str, bytes] = {}
    extensions: dict[str, str] = {}
    try:
        with open_regular(path) as shard, tarfile.open(fileobj=shard, mode="r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if extension in ("jpg", "png"):
                    extensions[key] = extension
                elif extension == "json":
                    # extractfile would follow a link.
                    file = tar.extractfile(member) if member.isreg() else None
                    if file is None or member.size > _MOST_FACTS:
                        raise DataShardsError(f"{path}: {member.name}: not the facts of a sample")
                    texts[key] = file.read()
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataShardsError(f"{path}: cannot be read ({error})") from None
    if texts.keys() != extensions.keys():
        raise DataShardsError(f"{path}: has samples without an image or without their facts")
    return {key: _parse(f"{path}: {key}", key, texts[key], extensions[key]) for key in texts}


def _parse(where: str, key: str, text: bytes, extension: str) -> Facts:
    try:
        facts: dict[str, Any] = parse_json(text)
        width, height = facts["size"]
        return Facts(
            key=key,
            source=str(facts["source"]),
            wnid=str(facts.get("wnid", "")),
            size=(int(width), int(height)),
            flags=tuple(str(flag) for flag in facts["flags"]),
            extension=extension,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataShardsError(f"{where}: malformed facts") from None
