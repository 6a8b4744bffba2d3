"""List the images of ImageNet and related data sets, in any of their published forms.

A source is one of these: a folder of class folders (by wnid), with or without ``train`` and
``val`` around them; an archive as ILSVRC2012, ImageNet-A and ImageNet-C publish them, read in
place; a folder with such archives; Kaggle's ``ILSVRC/Data/CLS-LOC``. A class is found by its
folder's name, never by its position, so a missing class shifts no label.
"""

import gc
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_shards.errors import UsageError
from data_shards.findings import Finding
from data_shards.format.manifest import Option
from data_shards.sources.datasets import PUBLISHED_MD5, SELECTION, TRAIN, Dataset
from data_shards.sources.found import Found, Row
from data_shards.sources.images import find_images
from data_shards.sources.listing import Item, Listing, listing_digest
from data_shards.sources.naming import safe_key, selection_keys, unique_keys

SELECTION_FRACTION = 0.02
STYLISED = "stylised"

_SHOWN = 5  # names in a warning


def listings(
    dataset: Dataset,
    sources: Sequence[Path],
    split: str | None = None,
    *,
    stylised: Sequence[Path] = (),
    selection_fraction: float = SELECTION_FRACTION,
    seed: int = 0,
    verify_md5: bool = True,
    labels: Path | None = None,
    progress: bool = False,
) -> list[Listing]:
    """Return a listing of each split that ``sources`` hold, or only of ``split``.

    ``selection`` has the images of a folder of that name. If there is none, it is a part of the
    training images: ``selection_fraction`` of each wnid, chosen by
    :func:`~data_shards.sources.naming.selection_keys`. ``train`` has the rest, also if it is listed
    alone, and the images of ``stylised`` except copies of selection images. With
    ``split="selection"`` and the fraction 1, all images of the source are selection data.

    ``verify_md5`` reads whole archives. ``labels`` has the classes of images outside class folders;
    without it, the files of ILSVRC2012 and Kaggle are looked for beside the source. The items are
    in the order of their keys, so the order does not depend on the form of the source.

    UsageError if a source does not fit, DataShardsError if an archive is damaged.
    """
    if split is not None:
        dataset.check_split(split)
    if not 0 <= selection_fraction < 1 and (selection_fraction, split) != (1, SELECTION):
        raise UsageError(
            f"--selection-fraction {selection_fraction}: must be from 0 to below 1; 1 is for "
            "--split selection, from a source that is selection data as a whole"
        )
    if split == SELECTION and selection_fraction == 0:
        raise UsageError("--split selection: would be empty with --selection-fraction 0")
    if stylised and (split not in (None, TRAIN) or not dataset.can_train):
        raise UsageError(f"--stylised: is for the split train, not for {split or dataset.name}")
    with _collector_at_rest():
        return _listings(
            dataset,
            sources,
            split,
            stylised=stylised,
            fraction=selection_fraction,
            seed=seed,
            md5=verify_md5,
            labels=labels,
            progress=progress,
        )


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Stop the garbage collector, which finds no cycle in millions of rows.

    It would take half of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _listings(
    dataset: Dataset,
    sources: Sequence[Path],
    split: str | None,
    *,
    stylised: Sequence[Path],
    fraction: float,
    seed: int,
    md5: bool,
    labels: Path | None,
    progress: bool,
) -> list[Listing]:
    wanted = TRAIN if split == SELECTION and fraction < 1 else split
    found = find_images(dataset, sources, wanted, labels=labels, md5=md5, progress=progress)
    if split == SELECTION and SELECTION in found.other_splits:
        found = find_images(dataset, sources, split, labels=labels, md5=md5, progress=progress)
    elif SELECTION in found.other_splits | found.rows.keys() | found.findings.keys():
        fraction = 0  # the source has selection data of its own
    copies = (
        find_images(dataset, stylised, TRAIN, labels=None, md5=md5, progress=progress)
        if stylised and TRAIN in found.rows
        else None
    )
    if stylised and copies is None:
        raise UsageError("--stylised: needs training images in --source")
    result = []
    # A split of which nothing was taken has a listing too, with findings that say why.
    for name in dataset.order({*found.rows, *found.findings}):
        if name == TRAIN and dataset.can_train and TRAIN in found.rows:
            result += _training(dataset, found, copies, split, fraction=fraction, seed=seed)
        else:
            result.append(_listing(dataset, name, found.rows.get(name, []), [found]))
    return result


def _training(
    dataset: Dataset,
    found: Found,
    copies: Found | None,
    split: str | None,
    *,
    fraction: float,
    seed: int,
) -> list[Listing]:
    rows = found.rows[TRAIN]
    facts: dict[str, Option] = {"selection_fraction": fraction, "selection_seed": seed}
    chosen: Collection[tuple[str, str]] = ()
    warnings = _count_warning(dataset, TRAIN, len(rows))
    if fraction:
        chosen = selection_keys(((row.wnid, row.key) for row in rows), fraction, seed)
    if fraction and not chosen:
        problem = (
            f"selection would be empty: --selection-fraction {fraction} of each class is less "
            "than one image"
        )
        if split == SELECTION:
            raise UsageError(f"--split selection: {problem}")
        warnings.append(problem)
    result = []
    if split != SELECTION:
        rest = [row for row in rows if (row.wnid, row.key) not in chosen] if chosen else rows
        if chosen and not rest:
            raise UsageError(
                f"--selection-fraction {fraction}: holds out all {len(rows):,} training images; "
                "give a smaller fraction"
            )
        if split == TRAIN and chosen:
            warnings.append(
                f"{len(rows) - len(rest):,} of {len(rows):,} training images are held out as the "
                "split selection; --split selection converts them, --selection-fraction 0 keeps "
                "them"
            )
        founds = [found]
        styled: list[Row] = []
        if copies is not None:
            founds.append(copies)
            styled = [row for row in copies.rows[TRAIN] if (row.wnid, row.key) not in chosen]
            left = len(copies.rows[TRAIN]) - len(styled)
            facts = {**facts, STYLISED: len(styled)}
            if left:
                warnings.append(f"{left} stylised copies of selection images were left out")
        result.append(
            _listing(dataset, TRAIN, rest, founds, styled=styled, facts=facts, warnings=warnings)
        )
        warnings = []
    if split != TRAIN and chosen:
        part = [row for row in rows if (row.wnid, row.key) in chosen]
        result.append(
            _listing(
                dataset,
                SELECTION,
                part,
                [found] if split == SELECTION else [],
                archives=found,
                source_split=TRAIN,
                facts={"selection_fraction": fraction, "selection_seed": seed},
                warnings=warnings,
            )
        )
    return result


def _listing(
    dataset: Dataset,
    split: str,
    rows: Sequence[Row],
    told_by: Sequence[Found],
    *,
    styled: Sequence[Row] = (),
    archives: Found | None = None,
    source_split: str | None = None,
    facts: dict[str, Option] | None = None,
    warnings: Sequence[str] = (),
) -> Listing:
    """Make the listing of a split, with the findings and warnings of ``told_by``.

    ``source_split`` is the split of the source that it is a part of, if it is a part.
    """
    source_split = source_split or split
    items = _items(dataset, rows, styled)
    told = list(warnings)
    if source_split != TRAIN or not dataset.can_train:
        told += _count_warning(dataset, split, len(rows))
    told += _missing_warning(dataset, rows)
    findings: list[Finding] = []
    refused: list[Row] = []
    for found in told_by:
        findings += found.findings.get(source_split, [])
        refused += found.refused.get(source_split, [])
        told += found.warnings(source_split, dataset)
    all_facts = dict(facts or {})
    names: dict[str, str | None] = {}
    for found in [*told_by, *([archives] if archives is not None else [])]:
        names.update(found.archives.get(source_split, {}))
    if names:
        all_facts["archives"] = sorted(names)
    if names and all(names.values()):
        all_facts["archives_md5"] = [str(names[name]) for name in sorted(names)]
    for name, digest in sorted(names.items()):
        published = PUBLISHED_MD5.get(name)
        if published and digest and digest != published:
            findings.append(Finding(name, "suspect", ("md5-mismatch",)))
            told.append(f"{name}: its md5 is {digest}, but the published one is {published}")
    all_facts["listing_sha256"] = listing_digest(items)
    return Listing(
        dataset=dataset.name,
        split=split,
        classes=dataset.class_map.classes,
        items=items,
        normalize=dataset.normalize,
        facts=all_facts,
        findings=tuple(findings),
        warnings=tuple(told),
        refused=_refused_items(refused, items),
    )


def _refused_items(rows: Sequence[Row], items: Sequence[Item]) -> tuple[Item, ...]:
    if not rows:
        return ()
    ranked = sorted(rows)
    keys = [*(item.key for item in items), *(row.key for row in ranked)]
    sources = [*(item.source for item in items), *(row.source for row in ranked)]
    own = unique_keys(keys, sources)[len(items) :]
    return tuple(
        Item(row.source, key, -1, "", row.path, row.offset, row.length)
        for key, row in zip(own, ranked, strict=True)
    )


def _items(dataset: Dataset, rows: Sequence[Row], styled: Sequence[Row]) -> tuple[Item, ...]:
    labels = dataset.class_map.labels
    table = [
        *rows,
        *(row._replace(key=safe_key(f"{STYLISED}_{row.key}"), flags=(STYLISED,)) for row in styled),
    ]
    table.sort()
    keys = unique_keys([row.key for row in table], [row.source.rpartition("/")[2] for row in table])
    return tuple(
        Item(source, key, labels[wnid], wnid, path, offset, length, flags)
        for key, (_, source, wnid, path, offset, length, flags) in zip(keys, table, strict=True)
    )


def _count_warning(dataset: Dataset, split: str, count: int) -> list[str]:
    expected = dataset.expected_count(split)
    if expected is None or count == expected:
        return []
    return [f"{dataset.name} {split}: {count:,} images, but {expected:,} are published"]


def _missing_warning(dataset: Dataset, rows: Sequence[Row]) -> list[str]:
    there = {row.wnid for row in rows}
    labels = dataset.class_map.labels
    missing = [w for w in labels if w not in there and w not in dataset.absent]
    if not missing:
        return []
    line = f"{len(missing)} of {len(labels) - len(dataset.absent)} class folders have no images: "
    line += _some(missing)
    if len(labels) > len(dataset.class_map.classes):
        full = {labels[wnid] for wnid in there}
        empty = [
            name
            for label, name in enumerate(dataset.class_map.classes)
            if label not in full and any(labels[wnid] == label for wnid in missing)
        ]
        if empty:
            line += f"; so these classes have none: {_some(empty)}"
    return [line]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
