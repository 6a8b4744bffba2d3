"""Estimate the time and space of a conversion from a few of its images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_shards.convert.plan import Conversion, Options, stored_bytes
from data_shards.convert.treatment import treat
from data_shards.convert.workers import Crash, map_surviving
from data_shards.ordering import permutation
from data_shards.sources.listing import Item

_SAMPLE = 64
# Writing, reading back and hashing multiply the time of reading and examining by this.
_WRITING = 1.15
_START_SECONDS = 1.0


@dataclass(frozen=True)
class Estimate:
    """The ``bytes`` and ``seconds`` that ``images`` in ``shards`` will take.

    ``sampled`` images were read and examined, and ``damaged`` of them would be left out.
    """

    images: int
    shards: int
    bytes: int
    seconds: float
    sampled: int
    damaged: int


def estimate(conversion: Conversion, workers: int, shards: Sequence[int]) -> Estimate:
    """Read and examine a few images of the given shards, in a worker, and extrapolate."""
    items = [item for shard in shards for item in conversion.items(shard)]
    chosen = [items[i] for i in permutation(len(items), "estimate")[:_SAMPLE]]
    measure = partial(_measure, options=conversion.options)
    # An image that crashes its decoder would be left out.
    results = [
        found
        for found in map_surviving(measure, chosen, workers=1, chunk=_SAMPLE)
        if not isinstance(found, Crash)
    ]
    seconds = sum(took for _, took in results)
    kept = [length for length, _ in results if length is not None]
    if conversion.options.resize is None and not conversion.options.reencode:
        total = sum(stored_bytes(item.length) for item in items)
    else:
        total = round(float(np.mean(kept or [0])) * len(items))
    per_image = seconds / max(len(results), 1) * _WRITING
    # A worker writes whole shards, so there is no use in more workers than shards.
    busy = max(1, min(workers, len(shards)))
    return Estimate(
        images=len(items),
        shards=len(shards),
        bytes=total,
        seconds=_START_SECONDS + per_image * len(items) / busy,
        sampled=len(chosen),
        damaged=len(chosen) - len(kept),
    )


def _measure(item: Item, options: Options) -> tuple[int | None, float]:
    """Return the value of :func:`_length`, and the seconds that it took."""
    begin = time.perf_counter()
    length = _length(item, options)
    return length, time.perf_counter() - begin


def _length(item: Item, options: Options) -> int | None:
    """Treat an image as the pipeline does; return the bytes to store, None if left out."""
    found, content, made = treat(item, options)
    if found.verdict in ("corrupt", "refused"):
        return None
    return stored_bytes(len(made[0] if made else content))
