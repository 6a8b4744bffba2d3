"""Write one split: shards, index and manifest, in a folder that appears whole."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError, UsageError
from data_shards.files import staged_folder, write_synced
from data_shards.manifest import (
    FORMAT,
    HASH_BYTES,
    INDEX_NAME,
    MANIFEST_NAME,
    NO_BIAS,
    Excluded,
    Manifest,
    Normalize,
    Option,
    Shard,
    index_dtype,
    load_manifest,
    recipe,
)

_BLOCK = 512  # a tar member is a header block and its payload, padded to whole blocks
_LONGEST_KEY = 90  # bytes; with its extension a name still fits one ustar header block
_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


@dataclass(frozen=True)
class Plan:
    """What a split is to be: everything that is known before its images are read."""

    dataset: str
    split: str
    classes: tuple[str, ...]
    options: Mapping[str, Option]
    normalize: Normalize
    samples_per_shard: int

    @property
    def recipe(self) -> str:
        """Equal to the ``Manifest.recipe`` of the split made by this plan."""
        return recipe(self.dataset, self.split, self.classes, self.stored_options)

    @property
    def stored_options(self) -> dict[str, Option]:
        """The options as the manifest holds them."""
        return {**self.options, "samples_per_shard": self.samples_per_shard}


@dataclass(frozen=True, slots=True)
class _Row:
    shard: int
    offset: int
    length: int
    label: int
    bias: int
    hash: bytes
    key: bytes


class SplitWriter:
    """Collects samples into shards; made by :func:`split_writer`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Write into ``folder``, which exists and is empty."""
        self._folder = folder
        self._plan = plan
        self._rows: list[_Row] = []
        self._shards: list[Shard] = []
        self._excluded: list[Excluded] = []
        self._keys: set[bytes] = set()
        self._open: _OpenShard | None = None

    def write(
        self,
        key: str,
        image: bytes,
        label: int,
        *,
        source: str,
        size: tuple[int, int],
        bias: int = NO_BIAS,
        flags: tuple[str, ...] = (),
    ) -> None:
        """Add one sample; ``image`` is a JPEG or PNG file, ``size`` its (width, height)."""
        extension = next((e for e, magic in _MAGIC.items() if image.startswith(magic)), None)
        if extension is None:
            raise DataShardsError(f"{source}: neither a JPEG nor a PNG file")
        if not 0 <= label < len(self._plan.classes):
            raise DataShardsError(
                f"{source}: label {label} is outside the {len(self._plan.classes)} classes"
            )
        name = self._checked_key(key, source)
        digest = hashlib.sha256(image)
        facts: dict[str, object] = {
            "source": source,
            "sha256": digest.hexdigest(),
            "size": list(size),
            "flags": list(flags),
        }
        if bias != NO_BIAS:
            facts["bias"] = bias
        if self._open is None:
            shard_name = f"{self._plan.split}-{len(self._shards):06d}.tar"
            self._open = _OpenShard(self._folder / shard_name)
        offset = self._open.write(
            key,
            {
                "cls": str(label).encode(),
                extension: image,
                "json": json.dumps(facts, sort_keys=True).encode(),
            },
            extension,
        )
        self._rows.append(
            _Row(
                shard=len(self._shards),
                offset=offset,
                length=len(image),
                label=label,
                bias=bias,
                hash=digest.digest()[:HASH_BYTES],
                key=name,
            )
        )
        if self._open.count == self._plan.samples_per_shard:
            self._finish_shard()

    def exclude(self, source: str, *reasons: str) -> None:
        """Record in the manifest that ``source`` was left out."""
        self._excluded.append(Excluded(source=source, reasons=reasons))

    def finish(self) -> Manifest:
        """Close the last shard, write the index and, last of all, the manifest."""
        self._finish_shard()
        index = self._index()
        index_path = self._folder / INDEX_NAME
        stream = io.BytesIO()
        np.save(stream, index, allow_pickle=False)
        write_synced(index_path, stream.getvalue())
        counts = np.bincount(index["label"], minlength=len(self._plan.classes))
        manifest = Manifest(
            format=FORMAT,
            dataset=self._plan.dataset,
            split=self._plan.split,
            classes=self._plan.classes,
            samples=len(index),
            class_counts=tuple(counts.tolist()),
            normalize=self._plan.normalize,
            options=self._plan.stored_options,
            shards=tuple(self._shards),
            index_sha256=hashlib.sha256(stream.getvalue()).hexdigest(),
            excluded=tuple(self._excluded),
        )
        write_synced(self._folder / MANIFEST_NAME, manifest.to_json())
        return manifest

    def _checked_key(self, key: str, source: str) -> bytes:
        name = key.encode()
        # webdataset cuts the key at its first dot.
        if not 0 < len(name) <= _LONGEST_KEY or "." in key or not key.isprintable():
            raise DataShardsError(
                f"{source}: the key {key!r} must be 1 to {_LONGEST_KEY} bytes without a dot"
            )
        if name in self._keys:
            raise DataShardsError(f"{source}: the key {key!r} is already taken")
        self._keys.add(name)
        return name

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.finish())
            self._open = None

    def _index(self) -> NDArray[np.void]:
        key_bytes = max((len(row.key) for row in self._rows), default=1)
        index = np.zeros(len(self._rows), dtype=index_dtype(key_bytes))
        for name in index.dtype.names or ():
            column = [getattr(row, name) for row in self._rows]
            index[name] = np.array(column, dtype=index.dtype[name])
        return index


class _OpenShard:
    """A tar under a temporary name, until it is complete, flushed and hashed."""

    def __init__(self, path: Path) -> None:
        # webdataset takes a second to import (it imports torch); reading needs none of it.
        from webdataset.writer import TarWriter  # type: ignore[import-untyped]

        self.path = path
        self.count = 0
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = self._temporary.open("wb")
        self._tar = TarWriter(self._file, encoder=False, mtime=0)
        self._end = 0

    def write(self, key: str, members: dict[str, bytes], image: str) -> int:
        """Append a sample; return the offset of the payload of its member ``image``."""
        self._tar.write({"__key__": key, **members})
        for extension in sorted(members):  # the order in which TarWriter stores them
            if extension == image:
                offset = self._end + _BLOCK
            self._end += _BLOCK + -(-len(members[extension]) // _BLOCK) * _BLOCK
        self.count += 1
        return offset

    def finish(self) -> Shard:
        """Complete the tar and give it its name."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._temporary.stat().st_size
        self._temporary.rename(self.path)
        return Shard(name=self.path.name, bytes=size, sha256=sha256, count=self.count)


@contextmanager
def split_writer(output: Path, plan: Plan) -> Iterator[SplitWriter]:
    """Yield a writer of ``output/<split>``, which appears, complete, when the block ends well.

    Call :func:`present` first. If another process publishes the same split meanwhile, its
    folder stays; if it differs, UsageError.
    """
    folder = output / plan.split
    with staged_folder(folder) as staged:
        writer = SplitWriter(staged, plan)
        yield writer
        manifest = writer.finish()
    if load_manifest(folder).digest != manifest.digest:
        raise _differs(folder)


def present(output: Path, plan: Plan) -> Manifest | None:
    """Return the manifest of ``output/<split>`` if the plan made it, None if there is no folder.

    UsageError if something else is there: nothing is ever overwritten.
    """
    folder = output / plan.split
    if not folder.exists():
        return None
    try:
        manifest = load_manifest(folder)
    except DataShardsError as error:
        raise UsageError(f"{error}; remove {folder} or choose another --output") from None
    if manifest.recipe != plan.recipe:
        raise _differs(folder)
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UsageError(f"{path}: damaged or missing; remove {folder} and convert again")
    return manifest


def _differs(folder: Path) -> UsageError:
    return UsageError(
        f"{folder}: holds a different data set, which is never overwritten; "
        "remove it or choose another --output"
    )
