"""Convert a listing: examine every image, write shards in parallel, publish the split.

Finished shards are kept (:mod:`data_shards.convert.journal`), so the same call continues where
another was killed. The result does not depend on which process wrote which shard.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_shards.convert.journal import Head, Note, Record, Sample, Work
from data_shards.convert.plan import Conversion, Options
from data_shards.convert.publish import Limit, Tally, publish
from data_shards.convert.quarantine import copy_missing, copy_out, copy_refused
from data_shards.convert.treatment import Made, is_left_out, treat
from data_shards.convert.workers import Crash, map_surviving, mark
from data_shards.errors import DataShardsError
from data_shards.findings import CRASHES, Finding, Verdict
from data_shards.format.attributes import named_values
from data_shards.format.manifest import NO_BIAS, Manifest
from data_shards.format.writer import ShardWriter, present, shard_name, shard_writer
from data_shards.images.examine import Examination
from data_shards.sources.listing import Item

# For one image, or for flushing a shard to a slow disk.
_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to write.

    ``again``: the shard was written without some images, which are to be examined again.
    Those that are left out are copied to ``quarantine``. ``crashed`` has the findings on images
    that are not tried, by their positions. ``attributes`` are those of the listing.
    """

    work: Work
    recipe: str
    number: int
    items: list[Item]
    options: Options
    again: bool = False
    quarantine: Path | None = None
    crashed: dict[int, Finding] = field(default_factory=dict)
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a shard: the number of its images, the notes, whether it is new."""

    images: int
    notes: tuple[Note, ...]
    fresh: bool


def convert_listing(
    conversion: Conversion,
    output: Path,
    *,
    workers: int,
    limit: Limit,
    part: tuple[int, int] = (1, 1),
    quarantine: Path | None = None,
    on_shard: Callable[[int, bool], object] = lambda images, written: None,
) -> Manifest | None:
    """Convert, and return the manifest of ``output/<split>``; nothing is ever overwritten.

    With several parts (number from 1, how many), this call writes the shards of one part and
    returns None; :func:`~data_shards.convert.publish.merge` publishes. Images that are left out,
    now or by an earlier run, are copied to ``quarantine/<split>``, if given.
    ``on_shard(images, written)`` is called after each shard, with False for one that an earlier run
    has written. Images that an earlier run left out are examined again: they may have been
    repaired, or were unreadable for a moment.

    UsageError if another data set lies in the folder. DataShardsError if more images are damaged
    than ``limit`` allows: then nothing is published, but the work is kept.
    """
    conversion.check()
    plan = conversion.plan
    work = Work(output, plan.split)
    there = present(output, plan)
    copies = None if quarantine is None else quarantine / plan.split
    if copies is not None:
        copy_refused(conversion.listing, copies)
    if there is not None:
        if copies is not None:
            copy_missing(conversion.listing, copies, output / plan.split, there)
        work.remove()
        return there
    head = Head.of(conversion)
    tally = Tally(head.listed)
    tally.add(head.notes)
    limit.check(tally)
    work.begin(head)
    try:
        missing, again = [], []
        for number in conversion.part(*part):
            record = work.record(number, plan.recipe)
            if record is None:
                missing.append(number)
                continue
            if any(note.left_out for note in record.notes):
                again.append(number)
                continue
            tally.add(record.notes)
            limit.check(tally)
            on_shard(record.images, False)
        jobs = _jobs(conversion, work, again, missing, copies)
        for written in _write(jobs, workers):
            tally.add(written.notes)
            on_shard(written.images, written.fresh)
            limit.check(tally)
        if part[1] > 1:
            return None
        return publish(work, head, output, limit=limit, workers=workers)
    except OSError:
        # Another process may have published the split and removed the working folder.
        there = present(output, plan)
        if there is None:
            raise
        return there
    finally:
        work.clean()


def _jobs(
    conversion: Conversion,
    work: Work,
    again: Sequence[int],
    missing: Sequence[int],
    quarantine: Path | None,
) -> Iterator[Job]:
    work.clean()
    known = set(again)
    for number in (*again, *missing):
        yield Job(
            work=work,
            recipe=conversion.plan.recipe,
            number=number,
            items=conversion.items(number),
            options=conversion.options,
            again=number in known,
            quarantine=quarantine,
            attributes=conversion.listing.attributes,
        )


def _write(jobs: Iterable[Job], workers: int) -> Iterator[Written]:
    """Write shards in worker processes; an image that kills one is left out."""
    while True:
        drawn: deque[Job] = deque()
        again = []
        results = map_surviving(
            write_shard, _remember(jobs, drawn), workers=workers, seconds=_SECONDS
        )
        for result in results:
            job = drawn.popleft()
            if isinstance(result, Crash):
                again.append(_without(job, result))
            else:
                yield result
        if not again:
            return
        jobs = again


def _remember(jobs: Iterable[Job], drawn: deque[Job]) -> Iterator[Job]:
    for job in jobs:
        drawn.append(job)
        yield job


def _without(job: Job, crash: Crash) -> Job:
    if not 0 <= crash.position < len(job.items) or crash.position in job.crashed:
        name = shard_name(job.work.split, job.number)
        raise DataShardsError(f"{name}: the process that writes it died ({crash.cause})")
    verdict, reason = CRASHES[crash.cause]
    finding = Finding(job.items[crash.position].source, verdict, (reason,))
    return replace(job, crashed={**job.crashed, crash.position: finding})


def write_shard(job: Job) -> Written:
    """Write one shard and its record, in a worker, unless both exist and would not change."""
    record = job.work.record(job.number, job.recipe)
    if record is not None and job.again and _left_out(job, record) != _left_out_notes(record):
        # Remove the record first: it must never lie beside a shard that it does not describe.
        job.work.forget(job.number)
        record = None
    if record is not None:
        return Written(record.images, record.notes, fresh=False)
    record = _write_shard(job)
    job.work.keep(record)
    return Written(record.images, record.notes, fresh=True)


def _left_out_notes(record: Record) -> list[Note]:
    return [note for note in record.notes if note.left_out]


def _left_out(job: Job, record: Record) -> list[Note]:
    """Return notes on the images that a record left out and that would be left out again.

    They are copied into the quarantine: the earlier run may have had none.
    """
    sources = {note.path for note in _left_out_notes(record)}
    notes = []
    for position, item in enumerate(job.items):
        if item.source not in sources:
            continue
        mark(position)
        crash = job.crashed.get(position)
        if crash is not None:
            notes.append(_note(item, crash.verdict, crash.reasons, left_out=True))
            _copy(item, position, job)
            continue
        found, _, _ = treat(item, job.options)
        if is_left_out(found, job.options):
            notes.append(_note(item, found.verdict, found.reasons, left_out=True))
            _copy(item, position, job)
    return notes


def _write_shard(job: Job) -> Record:
    notes: list[Note] = []
    originals: list[tuple[Item, Examination]] = []
    path = job.work.shards / shard_name(job.work.split, job.number)
    with shard_writer(path, job.work.temporary) as writer:
        for position, item in enumerate(job.items):
            mark(position)
            crash = job.crashed.get(position)
            if crash is not None:
                notes.append(_note(item, crash.verdict, crash.reasons, left_out=True))
                _copy(item, position, job)
                continue
            found, content, made = treat(item, job.options)
            left_out = is_left_out(found, job.options)
            if found.verdict != "ok":
                notes.append(_note(item, found.verdict, found.reasons, left_out=left_out))
            if left_out:
                _copy(item, position, job)
            else:
                _store(writer, item, found, content, made, job.attributes)
                originals.append((item, found))
        end = len(job.items)
        mark(end)
        shard = writer.finish(lambda: mark(end))
    return Record(
        recipe=job.recipe,
        number=job.number,
        images=len(job.items),
        shard=shard,
        samples=tuple(
            Sample(
                key=row.key,
                source=item.source,
                offset=row.offset,
                length=row.length,
                label=row.label,
                sha256=row.sha256.hex(),
                original=found.sha256,
                pixels=found.pixels,
                attributes=item.attributes,
            )
            for row, (item, found) in zip(writer.rows, originals, strict=True)
        ),
        notes=tuple(notes),
    )


def _note(item: Item, verdict: Verdict, reasons: tuple[str, ...], *, left_out: bool) -> Note:
    return Note(path=item.source, verdict=verdict, reasons=reasons, left_out=left_out)


def _store(
    writer: ShardWriter,
    item: Item,
    found: Examination,
    content: bytes,
    made: Made | None,
    attributes: Mapping[str, tuple[str, ...]],
) -> None:
    """Write an image, or what is stored in its place."""
    facts: dict[str, object] = {}
    size = found.size
    sha256: bytes | None = bytes.fromhex(found.sha256)
    if item.wnid:
        facts["wnid"] = item.wnid
    if attributes:
        facts["attributes"] = named_values(attributes, item.attributes)
    if found.verdict == "suspect":
        facts["suspect"] = list(found.reasons)
    if made is not None:
        facts["original"] = {"sha256": found.sha256, "size": list(size)}
        content, size = made
        sha256 = None
    writer.write(
        item.key,
        content,
        item.label,
        source=item.source,
        size=size,
        bias=item.attributes[0] if item.attributes else NO_BIAS,
        flags=(*found.flags, *item.flags),
        sha256=sha256,
        facts=facts,
    )


def _copy(item: Item, position: int, job: Job) -> None:
    """Copy an image that is left out into the quarantine, if there is one."""
    if job.quarantine is not None:
        copy_out(item, job.quarantine, lambda: mark(position))
