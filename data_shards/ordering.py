"""Seeded orders that stay the same for ever.

numpy and torch may change the streams of their generators between versions. An order
that decides what a run saw, or what a data set is, may not change with them, so it is
the stable sort of splitmix64 keys (Steele, Lea & Flood, OOPSLA 2014), whose arithmetic
is fixed.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def derive(*parts: int | str) -> int:
    """Return a 64-bit state that depends on every part; for example a seed, an epoch, a purpose.

    Parts of different types or split at different places give unrelated states.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def splitmix64(state: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return outputs number ``positions`` (0-based, any shape) of splitmix64 seeded by ``state``.

    For one state the outputs at different positions differ, so a sort by them has no ties.
    """
    # Arrays, never numpy scalars: array arithmetic wraps modulo 2**64 without a warning.
    z = np.atleast_1d(positions).astype(np.uint64) + np.uint64(1)
    z = z * _GAMMA + np.uint64(state)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return z.reshape(np.shape(positions))


def permutation(length: int, *parts: int | str) -> NDArray[np.int64]:
    """Return a permutation of 0..length-1, int64 [length], that ``parts`` decide."""
    keys = splitmix64(derive(*parts), np.arange(length, dtype=np.int64))
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
