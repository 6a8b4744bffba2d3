"""Say what is odd but allowed in images whose class, split and bias attributes are words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from data_shards.sources.datasets import SELECTION, TRAIN
from data_shards.sources.listing import Listing
from data_shards.sources.words import plain_word

_SHOWN: Final = 5
_VALIDATION: Final = ("val", "valid", "validation", "dev")


def unused_words(names: Mapping[str, str], cells: Iterable[str]) -> list[str]:
    """Return a line for each word of --splits that no cell has; numbers may be spelled otherwise.

    ``names`` are the names of the splits by word, ``cells`` those of the column of splits.
    """
    there = {plain_word(cell) for cell in cells}
    return [
        f"--splits {word}={name}: no row has the word {word!r}, so it names no image"
        for word, name in names.items()
        if plain_word(word) not in there
    ]


def with_warnings(
    listings: Sequence[Listing], missing: int, unused: Sequence[str]
) -> list[Listing]:
    """Add what is odd but allowed: rows without files, empty groups, values that train lacks.

    ``missing`` rows have no file; ``unused`` are the lines of :func:`unused_words`.
    """
    told: list[list[str]] = [[] for _ in listings]
    told[0] += unused
    if missing:
        told[0].append(f"{missing:,} rows have no file and are left out")
    if len(listings[0].classes) == 1:
        told[0].append(
            f"all images have the class {listings[0].classes[0]!r}, so there is nothing to learn; "
            "--label-column names the column of the classes"
        )
    names = [listing.split for listing in listings]
    for name, lines in zip(names, told, strict=True):
        if name in _VALIDATION and TRAIN in names and SELECTION not in names:
            lines.append(
                "training takes this for a test split; name it selection with --splits if it is "
                "to choose the best checkpoint"
            )
    seen: dict[str, set[int]] = {}
    for listing, lines in zip(listings, told, strict=True):
        per_class = Counter(item.label for item in listing.items)
        without = [name for n, name in enumerate(listing.classes) if not per_class[n]]
        if without:
            lines.append(f"these classes have no images: {_some(without)}")
        for place, (name, values) in enumerate(listing.attributes.items()):
            cells = Counter((item.label, item.attributes[place]) for item in listing.items)
            blank = sum(count for (_, value), count in cells.items() if value < 0)
            if blank:
                lines.append(f"{blank:,} images have no {name}, because their cells are empty")
            here = {value for _, value in cells if value >= 0}
            known = seen.setdefault(name, here)
            if listing.split == TRAIN and len(here) == 1:
                lines.append(f"{name}: all images have {values[min(here)]}, so it forms no groups")
            if here - known:
                only = [values[value] for value in sorted(here - known)]
                lines.append(f"{name}: {listings[0].split} has no {_some(only)}")
            empty = [
                f"{listing.classes[label]} × {values[value]}"
                for label in sorted(per_class)
                for value in sorted(here)
                if not cells[label, value]
            ]
            if empty:
                lines.append(f"{name}: no image has class × value {_some(empty)}")
    return [
        replace(listing, warnings=(*listing.warnings, *lines))
        for listing, lines in zip(listings, told, strict=True)
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
