"""The order of an epoch's samples: a pure function of seed, epoch and shard sizes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_shards.ordering import derive, permutation, splitmix64


def epoch_order(
    seed: int, epoch: int, shard_counts: Sequence[int], window: int = 8
) -> NDArray[np.int64]:
    """Return the sample ids of an epoch in order, int64 [sum(shard_counts)], each once.

    A sample id is a position in the index, shard after shard. The shards are permuted, then
    the samples inside each window of ``window`` (at least 1) successive shards: reads stay
    within a few files, while the order mixes thousands of samples. Position p of the result
    belongs to step p // N and micro-batch (p mod N) // b. The order does not depend on the
    number of ranks or on a library's random generator.
    """
    counts = np.asarray(shard_counts, dtype=np.int64)
    if len(counts) == 0:
        return np.empty(0, dtype=np.int64)
    shards = permutation(len(counts), "shards", seed, epoch)
    first = np.cumsum(counts) - counts
    lengths = counts[shards]
    total = int(counts.sum())
    # Sample ids with the shards in their new order: each shard's run starts at first[shard].
    begins = np.cumsum(lengths) - lengths
    ids = np.arange(total, dtype=np.int64) + np.repeat(first[shards] - begins, lengths)
    windows = np.repeat(np.arange(len(counts)) // window, lengths)
    keys = splitmix64(derive("samples", seed, epoch), ids)
    # The window is the primary key; lexsort is stable.
    order: NDArray[np.int64] = ids[np.lexsort((keys, windows))]
    return order
