"""Number the words of a table's column: classes, values of an attribute, splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from data_shards.errors import UsageError
from data_shards.sources.datasets import SELECTION, TEST, TRAIN

_SPLIT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_NUMBER: Final = re.compile(r"\s*[+-]?\d{1,15}(\.\d{1,15})?\s*", re.ASCII)
_FEW_VALUES, _MOST_VALUES = 20, 1000  # of an attribute; more form no groups
_SHOWN: Final = 5
_MOST_PAIRS: Final = 20  # of --splits in a message


def hint(word: str, known: Sequence[str]) -> str:
    """Return the known word that is nearest to ``word``, as a message has it; "" if none is."""
    folded = {name.strip().casefold(): name for name in reversed(known)}
    near = get_close_matches(word.strip().casefold(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def numbered(
    what: str,
    cells: Sequence[tuple[str, str]],
    order: Sequence[str],
    option: str,
    *,
    blank: bool = False,
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of a column's words, and the number of each word as it is written.

    ``cells`` are words with their lines. ``order`` are all names, if they are given by ``option``.
    ``blank``: a cell may be empty, which is number -1.
    """
    first: dict[str, str] = {}
    for where, cell in cells:
        if cell not in first:
            first[cell] = where
    empty = [cell for cell in first if not cell.strip()]
    if empty and not blank:
        raise UsageError(f"{first[empty[0]]}: the {what} is empty; fill the cell or remove the row")
    words = [cell for cell in first if cell.strip()]
    if odd := [word for word in words if not word.strip().isprintable()]:
        raise UsageError(
            f"{first[odd[0]]}: the {what} {odd[0]!r} has a character that cannot be printed; "
            "correct the cell"
        )
    spelled: dict[str, str] = {}
    for word in words:
        other = spelled.setdefault(_spelling(word), word)
        if other != word:
            raise UsageError(
                f"{first[word]}: the {what} {word!r} is written {other!r} in {first[other]}; "
                "use one spelling"
            )
    if not words:
        raise UsageError(f"{what}: all cells are empty; name another column")
    if blank and len(words) > max(_FEW_VALUES, min(_MOST_VALUES, len(cells) // 2)):
        raise UsageError(
            f"{what}: has {len(words):,} values in {len(cells):,} rows, so it forms no groups; "
            "name other columns with --attributes"
        )
    numbers = {word: number for word in words if (number := _number(word)) is not None}
    if len(numbers) == len(words):
        names, ids = _by_number(what, numbers, order, option)
    else:
        names, ids = _by_name(what, {word: first[word] for word in words}, order, option)
    return names, {**ids, **dict.fromkeys(empty, -1)}


def _by_number(
    what: str, numbers: Mapping[str, float], order: Sequence[str], option: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    ranked = sorted(numbers, key=lambda word: numbers[word])
    shown = [_shown(numbers[word]) for word in ranked]
    if not order:
        return tuple(shown), {word: number for number, word in enumerate(ranked)}
    # A number in the order stands for its value, in any spelling: 00 and 0.0 are the number 0.
    places: dict[float, int] = {}
    for place, name in enumerate(order):
        number = _number(name)
        if number is not None and places.setdefault(number, place) != place:
            twice = order[places[number]]
            raise UsageError(f"{option}: {twice} and {name} are the same number; give one of them")
    missing = [word for word in ranked if numbers[word] not in places]
    if not missing:
        return tuple(order), {word: places[value] for word, value in numbers.items()}
    # Otherwise the order names the numbers 0, 1, …, which its own numbers must not contradict.
    odd = [order[place] for number, place in places.items() if number != place]
    if odd:
        raise UsageError(
            f"{option}: has the number {odd[0]}, but not {missing[0].strip()}, which the "
            f"{what} has; give every number of the {what}, or only names that are no numbers"
        )
    if all(value.is_integer() and 0 <= value < len(order) for value in numbers.values()):
        return tuple(order), {word: int(value) for word, value in numbers.items()}
    some = ", ".join(shown[:_SHOWN])
    raise UsageError(
        f"{option}: names {len(order)}, but the {what} has the numbers {some}; the names are those "
        "of 0, 1, …, so give one for each, or every number itself"
    )


def _by_name(
    what: str, words: Mapping[str, str], order: Sequence[str], option: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    names = tuple(order) or tuple(sorted(word.strip() for word in words))
    ids = {name: number for number, name in enumerate(names)}
    for word, where in words.items():
        if word.strip() not in ids:
            raise UsageError(
                f"{where}: the {what} {word!r} is none of {option}{hint(word, names)}; add it "
                "there or mend the cell"
            )
    return names, {word: ids[word.strip()] for word in words}


def _spelling(word: str) -> str:
    """Return what all spellings of a word share."""
    return " ".join(plain_word(word).casefold().split())


def plain_word(word: str) -> str:
    """Return a word without blanks around it; a number in its shortest form."""
    number = _number(word)
    return word.strip() if number is None else _shown(number)


def _number(word: str) -> float | None:
    return float(word) if _NUMBER.fullmatch(word) else None


def _shown(number: float) -> str:
    return str(int(number)) if number.is_integer() else str(number)


def split_names(cells: Sequence[tuple[str, str]], names: Mapping[str, str]) -> dict[str, str]:
    """Return the name of the split for each word of ``cells``, which are words with their lines.

    ``names`` are names by word, numbers in any spelling; without them, the words are the names.
    UsageError for a word without a name and for a name that is none of a folder.
    """
    given = _by_plain_word(names)
    found: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for where, cell in cells:
        if cell in found:
            continue
        word, is_number = plain_word(cell), _number(cell) is not None
        if not word:
            raise UsageError(f"{where}: the split is empty; fill the cell or remove the row")
        if "," in word or "=" in word:
            # --splits could not name it.
            raise UsageError(f"{where}: the split {word!r} has a ',' or '='; correct the cell")
        if given and word not in given:
            near = "" if is_number else hint(word, [*names])
            raise UsageError(
                f"{where}: the split {word!r} is none of --splits{near}; add "
                f"{word}=NAME to {','.join(map('='.join, names.items()))}"
            )
        if not given and is_number:
            raise _unnamed(where, (word for _, word in cells))
        name = given.get(word, word)
        other = spelled.setdefault(name.casefold(), name)
        if other != name:
            raise UsageError(
                f"{where}: the split {name!r} is also written {other!r}; use one spelling"
            )
        if not _SPLIT.fullmatch(name):
            raise UsageError(
                f"{where}: the split {name!r} is no name for a folder; rename it with --splits"
            )
        found[cell] = name
    return found


def _by_plain_word(names: Mapping[str, str]) -> dict[str, str]:
    """Return the names of splits by words in one spelling; UsageError if two names are for one."""
    given: dict[str, str] = {}
    first: dict[str, str] = {}
    for word, name in names.items():
        plain = plain_word(word)
        pair = f"{word}={name}"
        if given.setdefault(plain, name) != name:
            raise UsageError(f"--splits: {pair} and {first[plain]} name the same split; give one")
        first.setdefault(plain, pair)
    return given


def _unnamed(where: str, cells: Iterable[str]) -> UsageError:
    """Return the error for splits that are numbers, with a value of --splits that names all."""
    words = {plain_word(cell) for cell in cells} - {""}
    ranked = sorted(words, key=lambda word: (_number(word) is None, _number(word) or 0, word))
    taken = {word.casefold() for word in words}
    free = [name for name in (TRAIN, SELECTION, TEST) if name not in taken]
    free += [f"split-{place}" for place in range(len(words))]
    pairs = []
    for word in ranked[:_MOST_PAIRS]:
        is_name = _number(word) is None and _SPLIT.fullmatch(word)
        pairs.append(f"{word}={word if is_name else free.pop(0)}")
    example = ",".join([*pairs, *(["…"] if len(words) > len(pairs) else [])])
    # The value of an option must not begin with a minus.
    between = "=" if example.startswith("-") else " "
    return UsageError(
        f"{where}: the splits are numbers ({', '.join(ranked[:_SHOWN])}); name them, such as "
        f"--splits{between}{example}"
    )
