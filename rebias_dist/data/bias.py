"""The bias labels of splits: which attribute, under which ids, and aligned with which class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError
from data_shards.format.attributes import attribute_counts, load_attributes
from data_shards.format.manifest import NO_BIAS, Manifest
from data_shards.system.files import read_regular
from rebias_dist.config.bias import BiasRule
from rebias_dist.errors import ConfigError


class Values(NamedTuple):
    """An attribute and the names of its values by id; without attribute they are numbers."""

    attribute: str | None = None
    names: tuple[str, ...] = ()


def bias_labels(
    folder: Path, manifest: Manifest, index: NDArray[np.void], wanted: str | Values | None
) -> tuple[NDArray[np.int32], Values]:
    """Return the bias label of each sample of a split, ``[n]``, and what the labels stand for.

    Args:
        folder: of the split.
        manifest: of the split.
        index: of the split.
        wanted: None: the first attribute, or the index's numbers if there are no attributes. A
            name: that attribute. Values: this attribute under these ids; values that the split
            alone has get ids after them. A split that lacks the attribute has no labels (-1).

    Returns:
        The labels, and the values ``wanted`` followed by those that the split alone has. Numbers
        are named by :func:`numbered`, only when they are used.

    Raises:
        ConfigError: the split has attributes, but none of the name.
        DataShardsError: the attributes are damaged.
    """
    table = load_attributes(folder, manifest, index)
    own = {attribute.name: attribute for attribute in manifest.attributes}
    if isinstance(wanted, str) and own and wanted not in own:
        raise ConfigError(
            f"data.bias: {wanted!r} is no attribute of {folder}; there are {', '.join(own)}"
        )
    name = wanted.attribute if isinstance(wanted, Values) else wanted
    if wanted is None:
        name = next(iter(own), None)
    numbers = Values() if wanted is None or isinstance(wanted, str) else wanted
    if name is None and not own:
        return index["bias"], numbers
    if name is None or table is None or name not in own:
        return np.full(len(index), NO_BIAS, dtype=np.int32), Values(name, numbers.names)
    theirs = own[name].values
    names = numbers.names + tuple(value for value in theirs if value not in numbers.names)
    ids = np.array([*map(names.index, theirs), NO_BIAS], dtype=np.int32)
    same = np.array_equal(ids[:-1], np.arange(len(theirs)))
    return table[name] if same else ids[table[name]], Values(name, names)


def numbered(values: Values, bias: NDArray[np.integer]) -> tuple[str, ...]:
    """Return the names of the values; those of numbers reach to the largest one in ``bias``."""
    if values.attribute is not None:
        return values.names
    count = max(int(bias.max(initial=NO_BIAS)) + 1, len(values.names))
    return tuple(map(str, range(count)))


def values_of(rule: BiasRule | None) -> Values | None:
    """Return the values of a rule; None if it has none."""
    return Values(rule.attribute, tuple(rule.values)) if rule and rule.values else None


def find_rule(
    table: str | None,
    values: Values,
    classes: Sequence[str],
    labels: NDArray[np.integer],
    bias: NDArray[np.integer],
) -> BiasRule:
    """Return the rule of a table (a CSV file) or, without one, of the training samples.

    Args:
        table: ``data.aligned``.
        values: of all splits.
        classes: names, by label.
        labels: of the training samples, ``[n]``.
        bias: of the training samples, ``[n]``; -1: none.

    Raises:
        ConfigError: the table cannot be read, or does not fit.
    """
    if table is not None:
        rule = table_rule(table, values, classes, bias)
    else:
        rule = majority_rule(values, classes, labels, bias)
    doubts = [rule.doubt, _odd_values(values, bias, set(rule.aligned.values()))]
    return rule.model_copy(update={"doubt": "; ".join(filter(None, doubts))})


def _odd_values(values: Values, bias: NDArray[np.integer], aligned: set[str]) -> str:
    """Return which values no class is ``aligned`` with and no training sample has, if there are.

    Or that all training samples have the same value.
    """
    if values.attribute is None:
        return ""
    seen = set(bias[bias != NO_BIAS].tolist())
    if len(seen) == 1:
        name = values.names[min(seen)]
        return f"all training images have the {values.attribute} {name!r}, so it is no bias"
    unseen = [n for i, n in enumerate(values.names) if i not in seen and n not in aligned]
    if not seen or not unseen:
        return ""
    return (
        f"no training image has the {values.attribute} {', '.join(map(repr, unseen[:10]))}"
        f"{', …' if unseen[10:] else ''}, so test images with it count as conflicting"
    )


def majority_rule(
    values: Values,
    classes: Sequence[str],
    labels: NDArray[np.integer],
    bias: NDArray[np.integer],
) -> BiasRule:
    """Return the rule that a class goes with the value most of its training samples have.

    Of equal numbers of samples the lowest id is taken. The rule has a ``doubt`` if a class has no
    clear majority: its two largest numbers differ by less than two standard deviations of their
    difference, sqrt(n1 + n2), if both were equally likely.
    """
    names = numbered(values, bias)
    counts = attribute_counts(labels, bias, len(classes), len(names))
    known = np.flatnonzero(counts.any(axis=1))
    aligned = {classes[label]: names[int(counts[label].argmax())] for label in known.tolist()}
    doubt = ""
    if len(names) > 1:
        two = np.sort(counts[known], axis=1)[:, -2:]
        unclear = known[two[:, 1] - two[:, 0] < 2 * np.sqrt(two.sum(axis=1))].tolist()
        if unclear:
            name, count = classes[unclear[0]], counts[unclear[0]]
            doubt = (
                f"no value of the bias prevails in {len(unclear)} of the {len(classes)} classes "
                f"({name}: {count.max():,} of {count.sum():,} training images have "
                f"{aligned[name]}), so 'aligned' and 'conflicting' mean little; data.aligned can "
                "state which value goes with a class"
            )
    return BiasRule(attribute=values.attribute, values=list(names), aligned=aligned, doubt=doubt)


def table_rule(
    path: str, values: Values, classes: Sequence[str], bias: NDArray[np.integer]
) -> BiasRule:
    """Return the rule of a CSV file with the columns ``class`` and ``value``, both by name.

    Raises:
        ConfigError: it cannot be read, names what does not exist, or lacks a class.
    """
    where, names = f"data.aligned: {path}", numbered(values, bias)
    try:
        rows = csv.DictReader(io.StringIO(read_regular(Path(path)).decode("utf-8-sig")))
        found = [(row.get("class"), row.get("value")) for row in rows]
    except (DataShardsError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from None
    if rows.fieldnames is None or {"class", "value"} - set(rows.fieldnames):
        raise ConfigError(f"{where}: needs the columns class and value")
    aligned: dict[str, str] = {}
    for line, (name, value) in enumerate(found, 2):
        if name is None or name not in classes:
            raise ConfigError(f"{where}:{line}: no class is called {name!r}")
        if value is None or value not in names:
            shown = ", ".join(names[:10]) or "none"
            raise ConfigError(f"{where}:{line}: no value is called {value!r}; there are {shown}")
        if name in aligned:
            raise ConfigError(f"{where}:{line}: the class {name!r} has a row already")
        aligned[name] = value
    if missing := [name for name in classes if name not in aligned]:
        raise ConfigError(f"{where}: has no row for the class {missing[0]!r}")
    rule = {name: aligned[name] for name in classes}
    return BiasRule(
        attribute=values.attribute, values=list(names), aligned=rule, source="data.aligned"
    )
