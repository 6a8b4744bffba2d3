"""The folder of an unfinished conversion, which survives a kill at any moment.

``DIR/.<split>.convert/`` has ``plan.json``, finished shards, a record of each in ``journal``,
and temporary files. Everything is written under a temporary name, synced and renamed. Its content
depends on the plan alone, so several processes and machines may work here at once.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from data_shards.convert.plan import Conversion
from data_shards.errors import DataShardsError, UsageError
from data_shards.findings import Finding, Verdict
from data_shards.format.manifest import Normalize, Option, Shard
from data_shards.format.writer import Plan, shard_name
from data_shards.system.file_system import sync_folder, try_out
from data_shards.system.files import (
    locked,
    naming,
    read_regular,
    remove_stale,
    temporary_file,
    write_synced,
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Sample(_Model):
    """A stored image: its row of the index, and what finds duplicates.

    ``sha256`` is that of the image as stored, ``original`` that of the source's file,
    ``pixels`` as in :class:`~data_shards.images.examine.Examination` of that; all in hex.
    ``attributes`` are the ids of the values of its attributes, -1 for none.
    """

    key: str
    source: str
    offset: int
    length: int
    label: int
    sha256: str
    original: str
    pixels: str
    attributes: tuple[int, ...] = ()


class Note(_Model):
    """A finding, and whether its image or its images were left out."""

    path: str
    verdict: Verdict
    reasons: tuple[str, ...]
    left_out: bool
    images: NonNegativeInt = 1

    @property
    def finding(self) -> Finding:
        """The note as a finding."""
        return Finding(self.path, self.verdict, self.reasons, images=self.images)

    @property
    def damage(self) -> bool:
        """Whether the image is damaged or was refused."""
        return self.verdict in ("corrupt", "refused")


class Record(_Model):
    """The record of a finished shard; ``recipe`` identifies the conversion."""

    recipe: str
    number: int
    images: int
    shard: Shard
    samples: tuple[Sample, ...]
    notes: tuple[Note, ...]


class Head(_Model):
    """The content of ``plan.json``: all that publishing the split needs to know."""

    dataset: str
    split: str
    classes: tuple[str, ...]
    normalize: Normalize
    options: dict[str, Option]
    samples_per_shard: int
    shards: int
    images: int
    notes: tuple[Note, ...]
    attributes: dict[str, tuple[str, ...]] = {}

    @classmethod
    def of(cls, conversion: Conversion) -> "Head":
        """Return the head of a conversion."""
        plan, listing = conversion.plan, conversion.listing
        return cls(
            dataset=plan.dataset,
            split=plan.split,
            classes=plan.classes,
            normalize=plan.normalize,
            options=dict(plan.options),
            samples_per_shard=plan.samples_per_shard,
            shards=conversion.shards,
            images=len(listing.items),
            notes=tuple(
                Note(
                    path=found.path,
                    verdict=found.verdict,
                    reasons=found.reasons,
                    left_out=found.verdict in ("corrupt", "refused"),
                    images=found.images,
                )
                for found in listing.findings
            ),
            attributes=dict(listing.attributes),
        )

    @property
    def listed(self) -> int:
        """The number of images, including those that the source refused."""
        return self.images + sum(note.images for note in self.notes if note.left_out)

    @cached_property
    def plan(self) -> Plan:
        """The plan of the split."""
        return Plan(
            dataset=self.dataset,
            split=self.split,
            classes=self.classes,
            options=self.options,
            normalize=self.normalize,
            samples_per_shard=self.samples_per_shard,
        )


_M = TypeVar("_M", bound=_Model)


class Work:
    """The working folder of a split below ``output``; nothing is made before :meth:`begin`."""

    def __init__(self, output: Path, split: str) -> None:
        self.folder = output / f".{split}.convert"
        self.split = split
        self.shards = self.folder / "shards"
        self.temporary = self.folder / "temporary"
        self._journal = self.folder / "journal"
        self._plan = self.folder / "plan.json"

    def begin(self, head: Head) -> None:
        """Make the folder or go on in it; UsageError if it was begun with something else."""
        for folder in (self.shards, self.temporary, self._journal):
            folder.mkdir(parents=True, exist_ok=True)
        try_out(self.temporary)
        with self.locked():
            if not self._plan.exists():
                write_synced(self._plan, _sealed(head))
        there = self.head()
        if there != head:
            raise UsageError(
                f"{self.folder}: holds an unfinished conversion of something else "
                f"({_difference(there, head)}); give the same source and options, or remove it"
            )

    def head(self) -> Head:
        """Return the content of ``plan.json``; UsageError if no conversion was begun."""
        if not self._plan.exists():
            raise UsageError(f"{self.folder}: there is no unfinished conversion here")
        text = _unsealed(self._plan)
        if text is None:
            raise DataShardsError(f"{self._plan}: damaged; remove it and repeat the command")
        return self._parse(self._plan, text, Head)

    def record(self, number: int, recipe: str) -> Record | None:
        """Return the record of a finished shard whose file is there, else None.

        A record that a disk or a power cut has damaged is missing: its shard is written again.
        """
        path = self._record(number)
        text = _unsealed(path) if path.exists() else None
        if text is None:
            return None
        record = self._parse(path, text, Record)
        if (record.recipe, record.number) != (recipe, number):
            raise DataShardsError(f"{path}: belongs to another conversion; remove it")
        shard = self.shards / shard_name(self.split, number)
        with suppress(OSError):
            if shard.stat().st_size == record.shard.bytes:
                return record
        return None

    def has(self, number: int) -> bool:
        """Return whether the files of a shard and its record exist, without reading them."""
        shard = self.shards / shard_name(self.split, number)
        return shard.exists() and self._record(number).exists()

    def keep(self, record: Record) -> None:
        """Write the record of a shard that is finished."""
        sync_folder(self.shards)
        path = self._record(record.number)
        with naming(path), temporary_file(self.temporary, path.name) as (temporary, file):
            file.write(_sealed(record))
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(self._journal)

    def forget(self, number: int) -> None:
        """Remove the record of a shard that is to be written again."""
        self._record(number).unlink(missing_ok=True)
        sync_folder(self._journal)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from beginning or publishing at the same time."""
        with locked(self.folder / "lock"):
            yield

    def clean(self) -> None:
        """Remove what killed processes left in ``temporary``."""
        if self.temporary.is_dir():
            remove_stale(self.temporary)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, number: int) -> Path:
        return self._journal / f"{number:06d}.json"

    def _parse(self, path: Path, text: bytes, model: type[_M]) -> _M:
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            raise DataShardsError(
                f"{path}: was written by another version ({error.error_count()} errors); "
                f"remove {self.folder}"
            ) from None


def _sealed(model: BaseModel) -> bytes:
    """Return JSON below its sha256, so that damage by the disk is noticed."""
    text = model.model_dump_json().encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def _unsealed(path: Path) -> bytes | None:
    """Return the JSON of such a file, None if it has changed since it was written."""
    seal, _, text = read_regular(path).partition(b"\n")
    return text if seal == hashlib.sha256(text).hexdigest().encode() else None


def _difference(there: Head, given: Head) -> str:
    """Name the fields that differ, with the value that is there if it is short."""
    old = {**there.model_dump(exclude={"options"}), **there.options}
    new = {**given.model_dump(exclude={"options"}), **given.options}
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    # plan_sha256 differs whenever another field does, so it adds nothing.
    names = [name for name in names if name != "plan_sha256"] or ["the images"]
    return ", ".join(
        f"{name} {old[name]!r}" if isinstance(old.get(name), int | float | str) else name
        for name in names[:3]
    )
