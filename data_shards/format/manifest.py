"""Describe a folder of shards: ``manifest.json`` and the index ``index.npy``.

A split is a folder with ``<split>-NNNNNN.tar``, ``manifest.json`` and ``index.npy``. The
index has one row a sample, in shard order, and is made to be memory-mapped: a reader
finds each image by offset and never walks a tar.

The manifest holds the sha256 of every other file and, as ``digest``, of its own content. So
every change is noticed, except one by somebody who computes all the hashes anew. To notice that,
compare the digest with one from elsewhere, such as a run's record.
"""

import hashlib
import json
import mmap
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from data_shards.errors import DataShardsError
from data_shards.system.file_system import mapped
from data_shards.system.files import open_regular, parse_json, read_regular

FORMAT = 2
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npy"
ATTRIBUTES_NAME = "attributes.npy"
HASH_BYTES = 16
NO_BIAS = -1
INDEXED = "indexed"
"""Option of a split whose tars another program wrote, see :mod:`data_shards.convert.index`."""

# A name, never a path: a manifest cannot point outside its folder.
_ShardName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar$")]
_FileName = Annotated[str, StringConstraints(pattern=r"^[a-z]+\.(jsonl|npy)$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_AttributeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
_Count = Annotated[int, Field(ge=0)]


def _printable(text: str) -> str:
    """Return a name that terminals and logs may show; others could hide or change what they show.

    ValueError if it has another character.
    """
    if not text.isprintable():
        raise ValueError(f"{text!r} has a character that cannot be printed")
    return text


_Name = Annotated[str, AfterValidator(_printable)]
_Channels = Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]

# Rows of the index that are checked at a time: opening one must not copy it.
_ROWS = 65536

# The value of an option that a split was made with.
Option = bool | int | float | str | None | list[int] | list[str]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Record):
    """One tar file: its name, size in bytes, sha256 and number of samples."""

    name: _ShardName
    bytes: _Count
    sha256: _Sha256
    count: _Count


class Excluded(_Record):
    """A source image that was left out, and why (short codes).

    A folder or an archive that was left out has its number of ``images``, 0 if it was not read.
    """

    source: str
    reasons: tuple[str, ...]
    images: _Count = 1

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The manifests of a split without such folders keep their bytes and their digest.
        content: dict[str, Any] = write(self)
        if self.images == 1:
            del content["images"]
        return content


class Normalize(_Record):
    """Per-channel mean and standard deviation of pixels scaled to 0..1, for the network input."""

    mean: _Channels
    std: _Channels


class Attribute(_Record):
    """A property of the samples that a network may take for their class, such as the background.

    ``values`` are the names of its values by id, ``counts`` the samples, class × value; samples
    without a value (-1) are not counted.
    """

    name: _AttributeName
    values: Annotated[tuple[_Name, ...], Field(min_length=1)]
    counts: tuple[tuple[_Count, ...], ...]


class Manifest(_Record):
    """The content of ``manifest.json``.

    ``attributes`` are those of ``attributes.npy``, in the order of its columns; the column ``bias``
    of the index is the first. A data set whose makers numbered its bias, such as Biased-MNIST, has
    the column alone.

    ``files`` are the sha256 of what else belongs to the split: ``findings.jsonl`` and
    ``pixels.npy``, which :mod:`data_shards.convert.publish` describes.
    """

    format: int
    dataset: _Name
    split: _Name
    classes: tuple[_Name, ...]
    samples: _Count
    class_counts: tuple[_Count, ...]
    normalize: Normalize
    options: dict[str, Option]
    shards: tuple[Shard, ...]
    index_sha256: _Sha256
    files: dict[_FileName, _Sha256] = Field(default_factory=dict)
    excluded: tuple[Excluded, ...] = ()
    attributes: tuple[Attribute, ...] = ()

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The manifests of a split without attributes keep their bytes and their digest.
        content: dict[str, Any] = write(self)
        if not self.attributes:
            del content["attributes"]
        return content

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if self.format != FORMAT:
            raise ValueError(f"format {self.format} is not the format {FORMAT} of this version")
        if len(self.class_counts) != len(self.classes) or sum(self.class_counts) != self.samples:
            raise ValueError("class_counts do not add up to samples")
        if sum(shard.count for shard in self.shards) != self.samples:
            raise ValueError("the counts of the shards do not add up to samples")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("two shards have the same name")
        self._check_attributes()
        return self

    def _check_attributes(self) -> None:
        if len({attribute.name for attribute in self.attributes}) != len(self.attributes):
            raise ValueError("two attributes have the same name")
        if bool(self.attributes) != (ATTRIBUTES_NAME in self.files):
            raise ValueError(f"attributes and {ATTRIBUTES_NAME} belong together")
        for attribute in self.attributes:
            where, values = f"attribute {attribute.name}", attribute.values
            if len(set(values)) != len(values):
                raise ValueError(f"{where}: two values have the same name")
            lengths = [len(row) for row in attribute.counts]
            if lengths != [len(values)] * len(self.classes):
                raise ValueError(f"{where}: counts is not a table of class × value")

    @property
    def digest(self) -> str:
        """Sha256 of the content in canonical form: equal exactly for equal data sets."""
        return _canonical_digest(self.model_dump(mode="json"))

    @property
    def recipe(self) -> str:
        """Sha256 of what decides the split; it is known before the first image is written."""
        return recipe(self.dataset, self.split, self.classes, self.options)

    @property
    def is_indexed(self) -> bool:
        """Whether another program wrote the tars, so only the images are known to be as here."""
        return self.options.get(INDEXED) is True

    @property
    def shard_counts(self) -> list[int]:
        """Number of samples of each shard."""
        return [shard.count for shard in self.shards]

    def to_json(self) -> bytes:
        """Return the bytes of ``manifest.json``, the digest among them."""
        content = self.model_dump(mode="json")
        content["digest"] = _canonical_digest(content)
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _canonical_digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe(
    dataset: str, split: str, classes: tuple[str, ...], options: Mapping[str, Option]
) -> str:
    """Return the sha256 of what decides a split: data set, split, classes, options, format."""
    return _canonical_digest(
        {
            "format": FORMAT,
            "dataset": dataset,
            "split": split,
            "classes": list(classes),
            "options": dict(options),
        }
    )


def index_dtype(key_bytes: int) -> np.dtype[np.void]:
    """Return the row of ``index.npy``; ``key_bytes`` is the length of the longest key.

    ``shard`` (number), ``offset`` and ``length`` (bytes of the image inside the tar),
    ``label``, ``bias`` (-1: none), ``hash`` (first 16 bytes of the image's sha256) and
    ``key`` (UTF-8).
    """
    return np.dtype(
        [
            ("shard", "<i4"),
            ("offset", "<i8"),
            ("length", "<i8"),
            ("label", "<i4"),
            ("bias", "<i4"),
            ("hash", f"V{HASH_BYTES}"),
            ("key", f"S{max(key_bytes, 1)}"),
        ]
    )


def parse_manifest(path: Path) -> tuple[Manifest, bool]:
    """Return a manifest, and whether every byte of its file is as it was written.

    DataShardsError in one line if it cannot be read or is malformed.
    """
    content = read_regular(path)
    try:
        found = parse_json(content)
        if isinstance(found, dict):
            found.pop("digest", None)
        manifest = Manifest.model_validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataShardsError(f"{path}: malformed at {where}: {first['msg']}") from None
    except ValueError as error:
        raise DataShardsError(f"{path}: malformed: {error}") from None
    return manifest, content == manifest.to_json()


def load_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``; DataShardsError in one line if it is not valid."""
    path = folder / MANIFEST_NAME
    manifest, as_written = parse_manifest(path)
    if not as_written:
        raise DataShardsError(f"{path}: altered since it was written (its digest differs)")
    return manifest


def load_split(folder: Path) -> tuple[Manifest, NDArray[np.void]]:
    """Return the manifest and the memory-mapped index of a split, checked against each other.

    The shards themselves are not opened. Raises DataShardsError (one line) if a file is
    missing or malformed, a row points outside its shard, or a label is not a class.
    """
    manifest = load_manifest(folder)
    return manifest, load_index(folder, manifest)


def load_index(folder: Path, manifest: Manifest) -> NDArray[np.void]:
    """Return the memory-mapped index of a split, checked against its manifest.

    Raises DataShardsError as :func:`load_split`.
    """
    path = folder / INDEX_NAME
    index, pages = _map(path)
    _check_index(path, manifest, index)
    if pages is not None:
        # The check has read all pages. Drop them: those that are read again take memory then.
        pages.madvise(mmap.MADV_DONTNEED)
    return index


def map_array(path: Path) -> NDArray[Any]:
    """Return the array of a ``.npy`` file, mapped and read-only; DataShardsError if malformed."""
    return _map(path)[0]


def _map(path: Path) -> tuple[NDArray[Any], mmap.mmap | None]:
    with open_regular(path) as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("not of version 1.0")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran or dtype.hasobject or len(shape) != 1:
                raise ValueError("not a table")
            size, begin = os.fstat(file.fileno()).st_size, file.tell()
            if size != begin + shape[0] * dtype.itemsize:
                raise ValueError(f"it has {size} bytes, which is not what {shape[0]} rows take")
            if size == begin:
                return np.zeros(0, dtype=dtype), None
            pages = mapped(file)
            content = file.read() if pages is None else memoryview(pages)[begin:]
            return np.frombuffer(content, dtype, shape[0]), pages
        except Exception as error:  # numpy evaluates the header and raises what Python does
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataShardsError(f"{path}: malformed: {reason}") from None


def _check_index(path: Path, manifest: Manifest, index: NDArray[np.void]) -> None:
    fields = dict(index.dtype.fields or {})
    key_bytes = fields["key"][0].itemsize if "key" in fields else 0
    if index.ndim != 1 or index.dtype != index_dtype(key_bytes):
        raise DataShardsError(f"{path}: malformed: not an index of format {FORMAT}")
    if len(index) != manifest.samples:
        raise DataShardsError(
            f"{path}: has {len(index)} samples, its manifest says {manifest.samples}"
        )
    if len(manifest.shards) > np.iinfo(np.int32).max:
        raise DataShardsError(f"{path}: malformed: too many shards")
    sizes = np.array([shard.bytes for shard in manifest.shards], dtype=np.int64)
    ends = np.cumsum(manifest.shard_counts, dtype=np.int64)
    counts = np.zeros(len(manifest.classes), dtype=np.int64)
    for first in range(0, len(index), _ROWS):
        rows = index[first : first + _ROWS]
        expected = np.searchsorted(ends, np.arange(first, first + len(rows)), side="right")
        if not np.array_equal(rows["shard"], expected):
            raise DataShardsError(f"{path}: malformed: its shards are not those of the manifest")
        room = sizes[expected] - rows["offset"]
        outside = (rows["offset"] < 0) | (rows["length"] < 0) | (rows["length"] > room)
        if outside.any():
            row = first + int(np.argmax(outside))
            raise DataShardsError(f"{path}: malformed: sample {row} lies outside its shard")
        labels = rows["label"]
        unknown = (labels < 0) | (labels >= len(manifest.classes))
        if unknown.any():
            row = int(np.argmax(unknown))
            raise DataShardsError(
                f"{path}: sample {first + row} ({rows['key'][row].decode(errors='replace')}) has "
                f"the label {labels[row]}, outside the {len(manifest.classes)} classes of the "
                "manifest"
            )
        counts += np.bincount(labels, minlength=len(manifest.classes))
    if counts.tolist() != list(manifest.class_counts):
        raise DataShardsError(f"{path}: its counts per class are not those of the manifest")
