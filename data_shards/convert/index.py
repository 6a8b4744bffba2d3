"""Make a split of tars that were written elsewhere: its manifest and index, never the tars.

The manifest's option ``indexed`` says that another program wrote the tars.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.convert.foreign import Job, Reading, Tar, Unusable, read_tar
from data_shards.convert.publish import (
    FINDINGS_NAME,
    PIXELS_NAME,
    Limit,
    confirmed,
    first_half,
    found_files,
)
from data_shards.convert.workers import Crash, map_surviving
from data_shards.errors import DataShardsError, UsageError
from data_shards.findings import CRASHES, Finding
from data_shards.format.attributes import attributes_dtype, describe
from data_shards.format.manifest import (
    ATTRIBUTES_NAME,
    INDEX_NAME,
    INDEXED,
    MANIFEST_NAME,
    NO_BIAS,
    Attribute,
    Excluded,
    Manifest,
    Option,
    index_dtype,
    load_manifest,
)
from data_shards.format.writer import Plan, differs, index_of, npy, present, write_records
from data_shards.images.duplicates import DuplicateFinder
from data_shards.sources.listing import IMAGENET_NORMALIZE, Item
from data_shards.system.file_system import sync_folder
from data_shards.system.files import staged_folder

_SECONDS = 600.0  # for one image, or to read a part of a tar from a slow disk
_MOST_VALUES = 65_536  # of an attribute; a field with more is no property of groups of samples
_SHOWN = 5
_WRITTEN = (INDEX_NAME, FINDINGS_NAME, PIXELS_NAME, ATTRIBUTES_NAME, MANIFEST_NAME)


@dataclass(frozen=True)
class Indexing:
    """The tars of a split and where it lies.

    ``folder`` is that of the tars, which then become a split where they are, or one that does not
    exist yet, which gets hard links to them.
    """

    dataset: str
    tars: Sequence[Path]
    folder: Path
    reading: Reading

    @property
    def plan(self) -> Plan:
        """The plan of the split; its recipe has the names and the sizes of the tars."""
        names = "".join(f"{path.name} {path.stat().st_size}\n" for path in self.tars)
        options: dict[str, Option] = {
            INDEXED: True,
            "plan_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }
        if self.reading.label_field is not None:
            options["label_field"] = self.reading.label_field
        if self.reading.attributes:
            options["attributes"] = list(self.reading.attributes)
        classes = self.reading.classes.classes
        return Plan(self.dataset, self.folder.name, classes, options, IMAGENET_NORMALIZE, 0)

    @property
    def is_beside(self) -> bool:
        """Whether the tars stay where they are."""
        return self.tars[0].parent == self.folder


def index_tars(
    indexing: Indexing,
    *,
    workers: int,
    limit: Limit,
    on_tar: Callable[[int], object] = lambda size: None,
) -> tuple[Manifest, bool]:
    """Read the tars, examine their images, and write the records of the split.

    Returns the manifest, and False if it was there already. ``on_tar(bytes)`` is called after each
    tar. UsageError if something else is in the folder. DataShardsError if a tar cannot be used, if
    there is no sample, or if more images are damaged than ``limit`` allows; then nothing is
    written.
    """
    plan, folder = indexing.plan, indexing.folder
    there = _present_beside(folder, plan) if indexing.is_beside else present(folder.parent, plan)
    if there is not None:
        return there, False
    tars = _read(indexing, workers, on_tar)
    index = index_of([tar.rows for tar in tars])
    index["shard"] = np.repeat(np.arange(len(tars)), [len(tar.rows) for tar in tars])
    findings = [finding for tar in tars for finding in tar.findings]
    left_out = [finding for finding in findings if finding.verdict in ("corrupt", "refused")]
    _check_loss(indexing, index, left_out, limit)
    index = _with_unique_keys(index, tars)
    pixels = [text for tar in tars for text in tar.pixels]
    findings += _duplicates(indexing, index, pixels, workers)
    files = found_files(findings, map(first_half, pixels))
    attributes: list[Attribute] = []
    if indexing.reading.attributes:
        words, ids = _attributes(tars, indexing.reading.attributes)
        index["bias"] = ids[indexing.reading.attributes[0]]
        files[ATTRIBUTES_NAME] = npy(ids)
        attributes = describe(words, ids, index["label"], len(plan.classes))
    with _place(indexing) as place:
        manifest = write_records(
            place,
            plan,
            [tar.shard for tar in tars],
            index,
            excluded=[Excluded(source=f.path, reasons=f.reasons) for f in left_out],
            files=files,
            attributes=attributes,
        )
    if load_manifest(folder).digest != manifest.digest:  # another process was faster
        raise differs(folder)
    return manifest, True


def _present_beside(folder: Path, plan: Plan) -> Manifest | None:
    path = folder / MANIFEST_NAME
    found = [folder / name for name in _WRITTEN if os.path.lexists(folder / name)]
    if not found:
        return None
    if path in found and load_manifest(folder).recipe == plan.recipe:
        return load_manifest(folder)
    raise UsageError(
        f"{found[0]}: is there already, from other tars or options, and nothing is overwritten; "
        "remove it, or give --output"
    )


def _read(indexing: Indexing, workers: int, on_tar: Callable[[int], object]) -> list[Tar]:
    """Read the tars in worker processes; a sample that kills one is left out."""
    jobs = [Job(path, indexing.reading) for path in indexing.tars]
    found: dict[Path, Tar] = {}
    unusable: list[Unusable] = []
    while jobs:
        again: list[Job] = []
        results = map_surviving(read_tar, jobs, workers=min(workers, len(jobs)), seconds=_SECONDS)
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Crash):
                again.append(_without(job, result))
                continue
            on_tar(job.path.stat().st_size)
            if isinstance(result, Unusable):
                unusable.append(result)
            else:
                found[job.path] = result
        jobs = again
    if unusable:
        some = "; ".join(f"{fault.path} {fault.why}" for fault in unusable[:_SHOWN])
        more = f"; and {len(unusable) - _SHOWN} more" if len(unusable) > _SHOWN else ""
        raise DataShardsError(f"nothing is written: {some}{more}")
    return [found[path] for path in indexing.tars]


def _without(job: Job, crash: Crash) -> Job:
    if crash.position < 0 or crash.position in job.crashed:
        cure = "; write smaller tars" if crash.cause == "memory" else ""
        raise DataShardsError(f"{job.path}: the process that reads it died ({crash.cause}){cure}")
    return replace(job, crashed={**job.crashed, crash.position: CRASHES[crash.cause]})


def _check_loss(
    indexing: Indexing, index: NDArray[np.void], left_out: Sequence[Finding], limit: Limit
) -> None:
    total = len(index) + len(left_out)
    if not len(index):
        first = ""
        if left_out:
            path, reasons = left_out[0].path, left_out[0].reasons
            first = f"; {path}: {', '.join(reasons)}{_cure(indexing.reading, reasons)}"
        raise DataShardsError(
            f"{indexing.folder.name}: none of {total} samples can be used, so nothing is "
            f"written{first}"
        )
    if limit.most is not None and not limit.holds(len(left_out), total):
        raise DataShardsError(
            f"{left_out[0].path}: {left_out[0].verdict} ({', '.join(left_out[0].reasons)}); with "
            f"it {len(left_out)} of {total} images are left out, more than {limit.option} allows; "
            "nothing is written"
        )


def _cure(reading: Reading, reasons: Sequence[str]) -> str:
    """Return where the label of a sample without one is looked for, or which labels there are."""
    if "unknown-class" in reasons:
        names = reading.classes.classes
        return f"; the classes are {', '.join(names[:_SHOWN])}{', …' if names[_SHOWN:] else ''}"
    if "no-label" in reasons and reading.label_field is not None:
        return f"; its .json has no field {reading.label_field!r}, which --label-field names"
    if "no-label" in reasons:
        return "; it has no .cls and no folder; --label-field names a field of its .json"
    return ""


def _with_unique_keys(index: NDArray[np.void], tars: Sequence[Tar]) -> NDArray[np.void]:
    """Put the name of the tar before all keys if one occurs in several tars."""
    if len(np.unique(index["key"])) == len(index):
        return index
    keys = [
        f"{tar.shard.name.removesuffix('.tar')}/".encode() + key
        for tar in tars
        for key in tar.rows["key"].tolist()
    ]
    wide = np.zeros(len(index), dtype=index_dtype(max(map(len, keys))))
    for name in index.dtype.names or ():
        wide[name] = keys if name == "key" else index[name]
    return wide


def _duplicates(
    indexing: Indexing, index: NDArray[np.void], pixels: Sequence[str], workers: int
) -> list[Finding]:
    finder = DuplicateFinder()
    for row, text in zip(index, pixels, strict=True):
        finder.add(row["hash"].tobytes().hex(), text)

    def item(row: int) -> Item:
        at = index[row]
        path = indexing.tars[at["shard"]]
        source = f"{path.name}/{at['key'].decode()}"
        return Item(source, "", 0, "", str(path), int(at["offset"]), int(at["length"]))

    found: list[tuple[int, int, str]] = []
    for groups, reason in (
        (finder.same_bytes(), "same-bytes"),
        (confirmed(finder.same_pixels(), item, workers), "same-pixels"),
    ):
        found += [(other, first, reason) for first, *others in groups for other in others]
    return [
        Finding(item(row).source, "duplicate", (reason,), of=item(first).source)
        for row, first, reason in sorted(found)
    ]


def _attributes(
    tars: Sequence[Tar], names: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], NDArray[np.void]]:
    """Return the values of each attribute, in the order of their names, and their ids by sample."""
    words = {}
    ids = np.zeros(sum(len(tar.rows) for tar in tars), dtype=attributes_dtype(names))
    for name in names:
        told = [value for tar in tars for value in tar.values[name]]
        values = sorted({value for value in told if value is not None})
        if not values:
            raise UsageError(f"--attributes {name}: no sample has this field in its JSON")
        if len(values) > _MOST_VALUES:
            raise UsageError(
                f"--attributes {name}: has {len(values):,} values, so it is no property of groups"
            )
        number = {value: place for place, value in enumerate(values)}
        ids[name] = [NO_BIAS if value is None else number[value] for value in told]
        words[name] = tuple(values)
    return words, ids


@contextmanager
def _place(indexing: Indexing) -> Iterator[Path]:
    """Yield the folder to write the records to; after an error none of them stays."""
    folder = indexing.folder
    if not indexing.is_beside:
        with staged_folder(folder) as staged:
            for path in indexing.tars:
                _link(path, staged / path.name, folder)
            yield staged
        return
    with ExitStack() as undo:
        for name in _WRITTEN:
            undo.callback((folder / name).unlink, missing_ok=True)
        yield folder
        undo.pop_all()
    sync_folder(folder)


def _link(path: Path, link: Path, folder: Path) -> None:
    try:
        os.link(path.resolve(), link)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        raise UsageError(
            f"{path}: {folder.parent} can have no hard link to it ({error.strerror}); choose an "
            f"--output on the same disk, or copy the tars to {folder} and index them there, "
            "without --output"
        ) from None
