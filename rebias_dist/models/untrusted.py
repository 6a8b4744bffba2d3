"""Reading files of torch.save from anywhere: no code runs, and no file takes more than its size."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"  # torch.load tells its two formats apart by this beginning
_MOST_NODES = 1_000_000  # containers and values; a state has some for each parameter


def load_untrusted(file: BinaryIO, safe_globals: Sequence[Any] = ()) -> Any:
    """Return the tensors (on the CPU) and plain values in a file, without unpickling.

    Args:
        file: open for reading, at its beginning.
        safe_globals: further names that may occur in it, as torch's ``safe_globals`` takes them.

    Raises:
        ValueError: it is damaged, or hostile: it holds other objects, is compressed, or would grow
            in memory because parts of it are shared.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        if file.read(len(_ZIP)) == _ZIP:
            _check_members(file, size)
        file.seek(0)
        with torch.serialization.safe_globals(list(safe_globals)):
            content = torch.load(file, map_location="cpu", weights_only=True)
        if _nodes(content, size, {}) > _MOST_NODES:
            raise ValueError(f"it unfolds to more than {_MOST_NODES:,} values")
    except Exception as error:  # a hostile file may raise anything
        raise ValueError(str(error) or type(error).__name__) from None
    return content


def refusal(error: Exception) -> str:
    """Return why a file was refused, from what :func:`load_untrusted` raised."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return f"it holds {foreign[1]}, which is never loaded from a file"
    return "it is damaged or not a PyTorch checkpoint; download it again"


def _check_members(file: BinaryIO, size: int) -> None:
    """Refuse an archive whose members take more room than the file: torch inflates them."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed, which torch.save never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")


def _nodes(value: Any, size: int, known: dict[int, int]) -> int:
    """Return how many values a tree unfolds to; shared objects are visited once."""
    if isinstance(value, Tensor) and value.nbytes > min(value.untyped_storage().nbytes(), size):
        raise ValueError("a tensor is larger than what the file holds of it")
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    if parts and id(value) not in known:
        known[id(value)] = 1 + sum(_nodes(part, size, known) for part in parts)
    return known.get(id(value), 1)
