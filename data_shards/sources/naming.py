"""Make the keys of images and choose the selection data, both only from names."""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from data_shards.ordering import derive

LONGEST_KEY: Final = 90  # bytes; with an extension it still fits one header of a tar

_SAFE: Final = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")
_VALIDATION: Final = "ILSVRC2012_val_"
# Hugging Face adds the class: n01440764_18_n01440764, ILSVRC2012_val_00000293_n02110985.
_WITH_CLASS: Final = re.compile(r"(?:(n\d{8})_\d+|ILSVRC2012_val_\d{8})_(n\d{8})")


def key_of(wnid: str, name: str) -> str:
    """Return the key of the image ``name`` (without folder) of the class ``wnid``.

    It is the name without its extension, with the wnid before it unless the name begins with
    the wnid or is that of a validation image of ILSVRC2012. A class at its end, as in
    :func:`class_in`, is dropped. So an image has the same key in an archive and in a folder.
    """
    stem = name.rpartition(".")[0] or name
    if stem.endswith(wnid) and class_in(stem) == wnid:
        stem = stem[: -len(wnid) - 1]
    if not stem.startswith((_VALIDATION, f"{wnid}_")):
        stem = f"{wnid}_{stem}"
    return safe_key(stem)


def class_in(stem: str) -> str:
    """Return the wnid at the end of a name that Hugging Face gave an image, else ""."""
    found = _WITH_CLASS.fullmatch(stem)
    return found[2] if found and found[1] in (None, found[2]) else ""


def safe_key(text: str) -> str:
    """Return ``text`` as a key, unchanged if possible.

    If it is too long, it is cut. Characters other than letters, digits, ``_`` and ``-`` are
    replaced. In both cases ten digits of its sha256 at the end distinguish it from others.
    """
    if len(text) <= LONGEST_KEY and _SAFE.fullmatch(text):
        return text
    return _with_hash(_UNSAFE.sub("_", text), text)


def _with_hash(key: str, what: str) -> str:
    digest = hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{key[: LONGEST_KEY - 11]}-{digest}"


def unique_keys(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the keys, with a hash of the file's name added to those that occur again.

    The first of equal keys stays unchanged.
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
    """Return the (wnid, key) of the selection data.

    Of the n different keys of each wnid, these are the round(n * fraction) with the smallest
    hash of (seed, key). So the part is stratified, and the choice hardly depends on which other
    images exist. It does not depend on the data set: the selection images of 9-class ImageNet
    are among those of ImageNet. Images with one key (a copy in another format) stay together.
    """
    by_wnid: dict[str, set[str]] = {}
    for wnid, key in images:
        by_wnid.setdefault(wnid, set()).add(key)
    chosen: set[tuple[str, str]] = set()
    for wnid, keys in by_wnid.items():
        ranked = sorted(keys, key=lambda key: (derive(seed, "selection", key), key))
        chosen.update((wnid, key) for key in ranked[: round(len(keys) * fraction)])
    return chosen
