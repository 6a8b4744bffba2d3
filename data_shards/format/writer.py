"""Write shards, the index and the manifest of a split.

:func:`split_writer` writes one after the other, in a folder that appears whole. The pipeline
writes shards in parallel with :func:`shard_writer`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import (
    FORMAT,
    HASH_BYTES,
    INDEX_NAME,
    MANIFEST_NAME,
    NO_BIAS,
    Attribute,
    Excluded,
    Manifest,
    Normalize,
    Option,
    Shard,
    index_dtype,
    load_manifest,
    recipe,
)
from data_shards.format.tars import TarStream
from data_shards.system.files import staged_folder, temporary_file, write_synced

_LONGEST_KEY = 90  # bytes; with its extension a name still fits one ustar header block
_JSON = json.JSONEncoder(sort_keys=True)  # made once: dumps() would make one a sample
_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


@dataclass(frozen=True)
class Plan:
    """The plan of a split: everything that is known before its images are read.

    ``samples_per_shard`` is 0 for shards that were made elsewhere.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    options: Mapping[str, Option]
    normalize: Normalize
    samples_per_shard: int

    @property
    def recipe(self) -> str:
        """The ``Manifest.recipe`` of the split that this plan makes."""
        return recipe(self.dataset, self.split, self.classes, self.stored_options)

    @property
    def stored_options(self) -> dict[str, Option]:
        """The options as the manifest holds them."""
        if not self.samples_per_shard:
            return dict(self.options)
        return {**self.options, "samples_per_shard": self.samples_per_shard}


@dataclass(frozen=True, slots=True)
class Row:
    """A sample of a shard: a row of the index without the number of the shard.

    ``sha256`` is that of the image as stored; ``offset`` and ``length`` are where it lies.
    """

    key: str
    offset: int
    length: int
    label: int
    bias: int
    sha256: bytes


class ShardWriter:
    """Writes one shard; made by :func:`shard_writer`. ``rows`` are the samples so far."""

    def __init__(self, path: Path, temporary: Path, tar: TarStream) -> None:
        self._path = path
        self._temporary = temporary
        self._tar = tar
        self.rows: list[Row] = []

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
        sha256: bytes | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Add one sample; ``image`` is a JPEG or PNG file, ``size`` its (width, height).

        ``sha256`` is that of ``image``, if it is known; ``facts`` are added to the sample's JSON.
        """
        extension = next((e for e, magic in _MAGIC.items() if image.startswith(magic)), None)
        if extension is None:
            raise DataShardsError(f"{source}: neither a JPEG nor a PNG file")
        if sha256 is None:
            sha256 = hashlib.sha256(image).digest()
        told: dict[str, object] = {
            **(facts or {}),
            "source": source,
            "sha256": sha256.hex(),
            "size": list(size),
            "flags": list(flags),
        }
        if bias != NO_BIAS:
            told["bias"] = bias
        contents = {
            "cls": str(label).encode(),
            extension: image,
            "json": _JSON.encode(told).encode(),
        }
        offsets = self._tar.add(key, contents)
        self.rows.append(Row(key, offsets[extension], len(image), label, bias, sha256))

    def finish(self, alive: Callable[[], object] = lambda: None) -> Shard:
        """Complete the tar, sync it, read it back, then give it its name.

        ``alive()`` is called between slow steps, as a sign of life.
        """
        size, sha256 = self._tar.finish(alive)
        self._temporary.rename(self._path)
        return Shard(name=self._path.name, bytes=size, sha256=sha256, count=len(self.rows))


@contextmanager
def shard_writer(path: Path, temporary: Path) -> Iterator[ShardWriter]:
    """Yield a writer of the shard ``path``, which appears when ``finish`` is called.

    Until then it lies in the folder ``temporary``, which must be on the same file system. After
    an error nothing stays there.
    """
    with temporary_file(temporary, path.name) as (place, file):
        tar = TarStream(file)
        with closing(tar):
            yield ShardWriter(path, place, tar)


def shard_name(split: str, number: int) -> str:
    """Return the name of a shard."""
    return f"{split}-{number:06d}.tar"


class SplitWriter:
    """Collects samples into shards; made by :func:`split_writer`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Write into ``folder``, which exists and is empty."""
        self._folder = folder
        self._plan = plan
        self._shards: list[Shard] = []
        self._rows: list[NDArray[np.void]] = []
        self._excluded: list[Excluded] = []
        self._keys: set[str] = set()
        self._open: ShardWriter | None = None
        self._closing = ExitStack()

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
        check_sample(key, label, source, len(self._plan.classes))
        if key in self._keys:
            raise DataShardsError(f"{source}: the key {key!r} is already taken")
        if self._open is None:
            path = self._folder / shard_name(self._plan.split, len(self._shards))
            self._open = self._closing.enter_context(shard_writer(path, self._folder))
        self._open.write(key, image, label, source=source, size=size, bias=bias, flags=flags)
        self._keys.add(key)
        if len(self._open.rows) == self._plan.samples_per_shard:
            self._finish_shard()

    def exclude(self, source: str, *reasons: str) -> None:
        """Record in the manifest that ``source`` was left out."""
        self._excluded.append(Excluded(source=source, reasons=reasons))

    def finish(self) -> Manifest:
        """Close the last shard, write the index and then the manifest."""
        self._finish_shard()
        return write_records(
            self._folder, self._plan, self._shards, index_of(self._rows), excluded=self._excluded
        )

    def close(self) -> None:
        """Remove an unfinished shard."""
        self._closing.close()

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._rows.append(rows_of(len(self._shards), self._open.rows))
            self._shards.append(self._open.finish())
            self._open = None
            self._closing.close()


def check_sample(key: str, label: int, source: str, classes: int) -> None:
    """Raise DataShardsError if the key is not valid or the label is not one of the classes."""
    if not 0 <= label < classes:
        raise DataShardsError(f"{source}: label {label} is outside the {classes} classes")
    # webdataset cuts the key at its first dot.
    if not 0 < len(key.encode()) <= _LONGEST_KEY or "." in key or not key.isprintable():
        raise DataShardsError(
            f"{source}: the key {key!r} must be 1 to {_LONGEST_KEY} bytes without a dot"
        )


def rows_of(shard: int, rows: Sequence[Row]) -> NDArray[np.void]:
    """Return the rows of the index of one shard; its keys are as wide as its longest."""
    keys = [row.key.encode() for row in rows]
    table = np.zeros(len(rows), dtype=index_dtype(max(map(len, keys), default=1)))
    table["shard"] = shard
    table["key"] = keys
    for name in ("offset", "length", "label", "bias"):
        table[name] = [getattr(row, name) for row in rows]
    hashes = b"".join(row.sha256[:HASH_BYTES] for row in rows)
    table["hash"] = np.frombuffer(hashes, dtype=f"V{HASH_BYTES}")
    return table


def index_of(tables: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """Join the indexes of shards, in their order, to the index of a split."""
    widest = max((table.dtype["key"].itemsize for table in tables), default=1)
    index = np.zeros(sum(map(len, tables)), dtype=index_dtype(widest))
    first = 0
    for table in tables:
        index[first : first + len(table)] = table.astype(index.dtype)
        first += len(table)
    return index


def write_records(
    folder: Path,
    plan: Plan,
    shards: Sequence[Shard],
    index: NDArray[np.void],
    *,
    excluded: Sequence[Excluded] = (),
    files: Mapping[str, bytes] | None = None,
    attributes: Sequence[Attribute] = (),
) -> Manifest:
    """Write the index, other ``files`` by name, and at the end the manifest of a split.

    ``attributes`` are described by their file :data:`ATTRIBUTES_NAME`, which is among ``files``.
    """
    files = files or {}
    content = npy(index)
    write_synced(folder / INDEX_NAME, content)
    for name, text in files.items():
        write_synced(folder / name, text)
    counts = np.bincount(index["label"], minlength=len(plan.classes))
    manifest = Manifest(
        format=FORMAT,
        dataset=plan.dataset,
        split=plan.split,
        classes=plan.classes,
        samples=len(index),
        class_counts=tuple(counts.tolist()),
        normalize=plan.normalize,
        options=plan.stored_options,
        shards=tuple(shards),
        index_sha256=hashlib.sha256(content).hexdigest(),
        files={name: hashlib.sha256(text).hexdigest() for name, text in files.items()},
        excluded=tuple(excluded),
        attributes=tuple(attributes),
    )
    write_synced(folder / MANIFEST_NAME, manifest.to_json())
    return manifest


def npy(array: NDArray[np.void]) -> bytes:
    """Return the bytes of a ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@contextmanager
def split_writer(output: Path, plan: Plan) -> Iterator[SplitWriter]:
    """Yield a writer of ``output/<split>``, which appears, complete, when the block ends well.

    Call :func:`present` first. If another process publishes the same split meanwhile, its
    folder stays; if it differs, UsageError.
    """
    folder = output / plan.split
    with staged_folder(folder) as staged:
        writer = SplitWriter(staged, plan)
        with closing(writer):
            yield writer
            manifest = writer.finish()
    if load_manifest(folder).digest != manifest.digest:
        raise differs(folder)


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
        raise differs(folder)
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UsageError(f"{path}: damaged or missing; remove {folder} and convert again")
    return manifest


def differs(folder: Path) -> UsageError:
    """Return the error for a folder that holds another data set."""
    return UsageError(
        f"{folder}: holds a different data set, which is never overwritten; "
        "remove it or choose another --output"
    )
