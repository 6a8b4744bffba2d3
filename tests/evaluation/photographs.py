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
    all_biased: bool = False,
) -> Path:
    """Write a split. Every 7th image lacks a cluster, every 3rd a bias unless all have one."""
    plan = Plan(dataset, split, tuple(classes), {}, HALF, samples_per_shard=10)
    with split_writer(output, plan) as writer:
        for i, label in enumerate(labels):
            image = noise(i, (side, side))
            bias = (label + i % 2) % 3 if all_biased or i % 3 != 2 else NO_BIAS
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
