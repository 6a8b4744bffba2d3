"""A split of small images of any classes, with biases and texture clusters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_shards.format.manifest import NO_BIAS, load_split
from data_shards.format.writer import Plan, split_writer
from data_shards.images.clusters import write_clusters
from tests.data_shards.small_split import HALF, encoded, noise


def write(
    output: Path,
    split: str,
    labels: Sequence[int],
    *,
    classes: Sequence[str] = ("ant", "bee", "cat"),
    dataset: str = "insects",
    with_clusters: bool = False,
    side: int = 12,
) -> Path:
    """Write a split; every third image lacks a bias, and every seventh a cluster."""
    plan = Plan(dataset, split, tuple(classes), {}, HALF, samples_per_shard=10)
    with split_writer(output, plan) as writer:
        for i, label in enumerate(labels):
            image = noise(i, (side, side))
            bias = NO_BIAS if i % 3 == 2 else (label + i % 2) % 3
            content = encoded(image, "PNG")
            writer.write(f"k{i}", content, label, source=f"s{i}", size=image.size, bias=bias)
    folder = output / split
    if with_clusters:
        _, index = load_split(folder)
        rng = np.random.default_rng(0)
        keys = [key.decode() for key in index["key"].tolist()]
        rows = {key: tuple(rng.integers(0, 2, 2).tolist()) for key in keys if int(key[1:]) % 7}
        # In another order than the shards': they are joined by name.
        write_clusters(folder, dict(sorted(rows.items(), reverse=True)))
    return folder
