"""Read ``attributes.npy``: the ids of the values of each sample's attributes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError
from data_shards.format.manifest import ATTRIBUTES_NAME, Attribute, Manifest, map_array


def attributes_dtype(names: Sequence[str]) -> np.dtype[np.void]:
    """Return the row of ``attributes.npy``: for each attribute the id of its value (-1: none)."""
    return np.dtype([(name, "<i4") for name in names])


def named_values(attributes: Mapping[str, Sequence[str]], ids: Iterable[int]) -> dict[str, str]:
    """Return the name of a sample's value of each attribute, without those that it has not (-1).

    ``attributes`` are the names of the values by id; ``ids`` are in the same order.
    """
    return {
        name: values[number]
        for (name, values), number in zip(attributes.items(), ids, strict=True)
        if number >= 0
    }


def attribute_counts(
    labels: NDArray[np.integer[Any]], ids: NDArray[np.integer[Any]], classes: int, values: int
) -> NDArray[np.int64]:
    """Count samples, class × value; ``labels`` and ``ids`` (-1: none, not counted) are ``[n]``."""
    known = ids >= 0
    cells = labels[known].astype(np.int64) * values + ids[known]
    return np.bincount(cells, minlength=classes * values).reshape(classes, values)


def describe(
    attributes: Mapping[str, Sequence[str]],
    ids: NDArray[np.void],
    labels: NDArray[np.integer[Any]],
    classes: int,
) -> list[Attribute]:
    """Return the manifest's attributes for a table of ids with a row for each of ``labels``."""
    return [
        Attribute(
            name=name,
            values=tuple(values),
            counts=tuple(
                map(tuple, attribute_counts(labels, ids[name], classes, len(values)).tolist())
            ),
        )
        for name, values in attributes.items()
    ]


def load_attributes(
    folder: Path, manifest: Manifest, index: NDArray[np.void]
) -> NDArray[np.void] | None:
    """Return the memory-mapped ``attributes.npy``, or None if the split has no attributes.

    It has a row for each row of ``index`` and a column for each attribute, see
    :func:`attributes_dtype`. Raises DataShardsError if it and the manifest differ.
    """
    if not manifest.attributes:
        return None
    path = folder / ATTRIBUTES_NAME
    table = map_array(path)
    if table.dtype != attributes_dtype([attribute.name for attribute in manifest.attributes]):
        raise DataShardsError(f"{path}: malformed: its columns are not the manifest's attributes")
    if len(table) != len(index):
        raise DataShardsError(f"{path}: has {len(table)} rows for {len(index)} samples")
    for attribute in manifest.attributes:
        ids, values = table[attribute.name], len(attribute.values)
        if len(ids) and not -1 <= ids.min() <= ids.max() < values:
            raise DataShardsError(
                f"{path}: {attribute.name} has a value outside the {values} values of the manifest"
            )
        counts = attribute_counts(index["label"], ids, len(manifest.classes), values)
        if counts.tolist() != [list(row) for row in attribute.counts]:
            raise DataShardsError(f"{path}: the counts of {attribute.name} are not the manifest's")
    if not np.array_equal(table[manifest.attributes[0].name], index["bias"]):
        raise DataShardsError(
            f"{path}: {manifest.attributes[0].name} is not the column bias of the index"
        )
    return table
