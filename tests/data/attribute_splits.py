"""Splits with named attributes, written as a converter of tables would."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.format.attributes import attribute_counts, attributes_dtype
from data_shards.format.manifest import ATTRIBUTES_NAME, Attribute, load_split
from data_shards.format.writer import Plan, npy, split_writer, write_records
from tests.data_shards.small_split import HALF, encoded, noise


def write_attributes(
    output: Path,
    split: str,
    labels: Sequence[int],
    values: Mapping[str, Sequence[str]],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] = ("landbird", "waterbird"),
    images: Sequence[Image.Image] | None = None,
    dataset: str = "birds",
) -> Path:
    """Write a split; ``values`` are the values of each sample by attribute, '' for none.

    ``names`` are the values of an attribute in the order of their ids; sorted if not given.
    """
    plan = Plan(dataset, split, tuple(classes), {}, HALF, samples_per_shard=50)
    pictures = images or [noise(i, (8, 8)) for i in range(len(labels))]
    with split_writer(output, plan) as writer:
        for i, (label, image) in enumerate(zip(labels, pictures, strict=True)):
            content = encoded(image, "PNG")
            writer.write(f"k{i:05}", content, label, source=f"s{i}", size=image.size)
    folder = output / split
    manifest, index = load_split(folder)
    order = [int(key.decode()[1:]) for key in index["key"].tolist()]
    index = index.copy()
    table = np.zeros(len(index), dtype=attributes_dtype(list(values)))
    attributes = []
    for name, column in values.items():
        known = tuple((names or {}).get(name) or sorted(set(column) - {""}))
        place = {value: number for number, value in enumerate(known)} | {"": -1}
        table[name] = [place[column[i]] for i in order]
        counts = attribute_counts(index["label"], table[name], len(classes), len(known))
        rows = tuple(map(tuple, counts.tolist()))
        attributes.append(Attribute(name=name, values=known, counts=rows))
    index["bias"] = table[next(iter(values))]
    files = {ATTRIBUTES_NAME: npy(table)}
    write_records(folder, plan, manifest.shards, index, files=files, attributes=attributes)
    return folder
