"""attributes.npy and the manifest agree, or one line says how they differ."""

import json

import numpy as np
import pytest

from data_shards.errors import DataShardsError
from data_shards.format.attributes import attribute_counts, attributes_dtype, load_attributes
from data_shards.format.manifest import ATTRIBUTES_NAME, Attribute, Normalize, load_split
from data_shards.format.writer import Plan, npy, split_writer, write_records

LABELS = [0, 0, 1, 1, 1]
IDS = {"place": [0, 1, 1, 1, -1], "day": [2, 0, 1, -1, 0]}
VALUES = {"place": ("land", "water"), "day": ("mon", "tue", "wed")}
COUNTS = {"place": [[1, 1], [0, 2]], "day": [[1, 0, 1], [1, 1, 0]]}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def write(folder, ids=IDS, counts=COUNTS, bias=IDS["place"]):
    plan = Plan(
        "birds", "train", ("land", "water"), {}, Normalize(mean=(0.0,) * 3, std=(1.0,) * 3), 2
    )
    with split_writer(folder, plan) as writer:
        for key, label in zip("abcde", LABELS, strict=True):
            writer.write(key, PNG, label, source=key, size=(1, 1))
    manifest, index = load_split(folder / "train")
    index = index.copy()
    index["bias"] = bias
    table = np.zeros(len(index), dtype=attributes_dtype(list(ids)))
    for name, column in ids.items():
        table[name] = column
    attributes = [
        Attribute(name=n, values=VALUES[n], counts=tuple(map(tuple, counts[n]))) for n in VALUES
    ]
    files = {ATTRIBUTES_NAME: npy(table)}
    shards = manifest.shards
    write_records(folder / "train", plan, shards, index, files=files, attributes=attributes)
    return folder / "train"


def test_attributes_are_read_as_they_were_written(tmp_path):
    folder = write(tmp_path)
    manifest, index = load_split(folder)
    table = load_attributes(folder, manifest, index)
    for attribute in manifest.attributes:
        assert table[attribute.name].tolist() == IDS[attribute.name]
        assert attribute.values == VALUES[attribute.name]
        assert [list(row) for row in attribute.counts] == COUNTS[attribute.name]


def test_a_split_without_attributes_has_none_and_no_word_of_them_in_its_manifest(tmp_path):
    folder = write(tmp_path)
    manifest, index = load_split(folder)
    bare = manifest.model_copy(update={"attributes": (), "files": {}})
    assert "attributes" not in json.loads(bare.to_json())
    assert load_attributes(folder, bare, index) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": {"day": IDS["day"], "place": IDS["place"]}}, "its columns are not the manifest's"),
        ({"ids": {**IDS, "day": [2, 0, 3, -1, 0]}}, "day has a value outside the 3 values"),
        ({"ids": {**IDS, "day": [2, 0, 0, -1, 0]}}, "the counts of day are not the manifest's"),
        ({"bias": [0, 1, 1, 1, 1]}, "place is not the column bias of the index"),
    ],
)
def test_what_differs_is_named(tmp_path, changes, message):
    folder = write(tmp_path, **changes)
    with pytest.raises(DataShardsError, match=message):
        load_attributes(folder, *load_split(folder))


def test_a_table_of_other_counts_is_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="attribute day: counts is not a table"):
        write(tmp_path, counts={**COUNTS, "day": [[1, 0], [1, 1]]})


def test_counts_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    labels, ids = rng.integers(0, 4, 500), rng.integers(-1, 3, 500)
    slow = np.zeros((4, 3), dtype=int)
    for label, value in zip(labels, ids, strict=True):
        if value >= 0:
            slow[label, value] += 1
    assert attribute_counts(labels, ids, 4, 3).tolist() == slow.tolist()
