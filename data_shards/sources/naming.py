"""Keys of images, and which of them are selection data: both follow from names alone."""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from data_shards.ordering import derive

LONGEST_KEY: Final = 90  # bytes; with its extension it still fits one header of a tar

_SAFE: Final = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")
_VALIDATION: Final = "ILSVRC2012_val_"


def key_of(wnid: str, name: str) -> str:
    """Return the key of the image ``name`` (without folder) of the class ``wnid``.

    It is the name without its extension if that says the class or is one of ILSVRC2012's
    validation images, otherwise with the wnid before it: so the key of an image is the same
    whether it comes from an archive or a folder.
    """
    stem = name.rpartition(".")[0] or name
    if not stem.startswith((_VALIDATION, f"{wnid}_")):
        stem = f"{wnid}_{stem}"
    return safe_key(stem)


def safe_key(text: str) -> str:
    """Return ``text`` if it may be a key as it is.

    If it is too long or has other characters than letters, digits, ``_`` and ``-``, they are
    replaced, and ten digits of its sha256 at the end keep it apart from others.
    """
    if len(text) <= LONGEST_KEY and _SAFE.fullmatch(text):
        return text
    return _with_hash(_UNSAFE.sub("_", text), text)


def _with_hash(key: str, what: str) -> str:
    digest = hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{key[: LONGEST_KEY - 11]}-{digest}"


def unique_keys(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the keys with those that occur again told apart by a hash of their file's name.

    The first of equal keys stays as it is.
    """
    taken: set[str] = set()
    unique = []
    for key, file in zip(keys, names, strict=True):
        tries = 0
        name = key
        while name in taken:
            name = _with_hash(key, f"{file}\0{tries}")
            tries += 1
        taken.add(name)
        unique.append(name)
    return unique


def selection_keys(
    images: Iterable[tuple[str, str]], fraction: float, seed: int
) -> Collection[tuple[str, str]]:
    """Return those of the (wnid, key) that are selection data.

    Of each wnid's n different keys the round(n * fraction) with the smallest hash of (seed,
    key). So a part is stratified; whether an image belongs to it hardly depends on which others
    are there; and it does not depend on the data set: 9-class ImageNet's selection images are
    among those of ImageNet. Images of one key (a copy in another format) stay together.
    """
    by_wnid: dict[str, set[str]] = {}
    for wnid, key in images:
        by_wnid.setdefault(wnid, set()).add(key)
    chosen: set[tuple[str, str]] = set()
    for wnid, keys in by_wnid.items():
        ranked = sorted(keys, key=lambda key: (derive(seed, "selection", key), key))
        chosen.update((wnid, key) for key in ranked[: round(len(keys) * fraction)])
    return chosen
