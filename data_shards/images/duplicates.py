"""Find images that are the same, by their bytes or by their pixels.

A row takes 32 bytes, so the 1.3 million images of ImageNet fit into memory.
"""

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES = 16  # of a sha256: two of a million images collide once in 10**26 data sets


class DuplicateFinder:
    """Collects images as rows, numbered from 0, and groups those that are the same."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._pixels = bytearray()

    def __len__(self) -> int:
        return len(self._bytes) // _DIGEST_BYTES

    def add(self, sha256: str, pixels: str) -> int:
        """Add an image by its two hashes, in hex; return its row.

        ``""`` stands for no hash. Images without a hash are never the same.
        """
        self._bytes += _digest(sha256)
        self._pixels += _digest(pixels)
        return len(self) - 1

    def same_bytes(self) -> list[list[int]]:
        """Return the groups of rows with equal bytes, each ascending, by their first row."""
        return _groups(_digests(self._bytes))

    def same_pixels(self) -> list[list[int]]:
        """Return the groups of rows with equal pixel hashes and different bytes.

        The first of the rows with equal bytes stands for all. The hash of a JPEG is of its
        pixels at an eighth of the size, so the caller has to compare all the pixels.
        """
        pixels = _digests(self._pixels)
        for group in self.same_bytes():
            pixels[group[1:]] = 0
        return _groups(pixels)


def _digest(text: str) -> bytes:
    return bytes.fromhex(text[: 2 * _DIGEST_BYTES]) if text else bytes(_DIGEST_BYTES)


def _digests(content: bytearray) -> NDArray[np.uint64]:
    # A copy: an array that shares the memory would forbid adding rows.
    return np.frombuffer(bytes(content), np.uint64).reshape(-1, 2).copy()


def _groups(digests: NDArray[np.uint64]) -> list[list[int]]:
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    order = order[digests[order].any(axis=1)]
    ordered = digests[order]
    equal = (ordered[1:] == ordered[:-1]).all(axis=1)
    # A group is a run of equal neighbours; the sort is stable, so its rows ascend.
    edges = np.flatnonzero(np.diff(equal.astype(np.int8), prepend=0, append=0))
    found = [
        order[begin : end + 1].tolist() for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    return sorted(found)
