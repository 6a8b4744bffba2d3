"""Groups of class and bias, and the figure that chooses a checkpoint, against slow counts."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from rebias_dist.config.files import validate
from rebias_dist.data.splits import open_data
from rebias_dist.errors import ConfigError
from rebias_dist.evaluation.closing import table
from rebias_dist.evaluation.groups import groups_of, interval, lines, shown_groups, worst_named
from rebias_dist.evaluation.splits import check_select, too_small
from rebias_dist.evaluation.text import groups_table
from rebias_dist.runs.results_schema import Results
from tests.data.attribute_splits import write_attributes


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 200),
    classes=st.integers(1, 5),
    values=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_groups_are_those_of_a_loop(seed, n, classes, values):
    rng = np.random.default_rng(seed)
    labels, bias = rng.integers(0, classes, n), rng.integers(0, values, n)
    right = rng.random(n) < 0.6
    count, correct = np.zeros((2, classes, values), dtype=int)
    cells = defaultdict(list)
    for label, value, hit in zip(labels.tolist(), bias.tolist(), right.tolist(), strict=True):
        cells[f"c{label}", f"v{value}"].append(hit)
        count[label, value] += 1
        correct[label, value] += hit
    names = [f"c{i}" for i in range(classes)], [f"v{i}" for i in range(values)]
    found = groups_of(correct, count, *names)
    assert {(g["class"], g["value"]) for g in found} == cells.keys()
    for group in found:
        hits = cells[group["class"], group["value"]]
        assert (group["samples"], group["correct"]) == (len(hits), sum(hits))
        assert group["accuracy"] == sum(hits) / len(hits)
        slow = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
        assert group["interval"] == pytest.approx([slow.low, slow.high], abs=1e-12)
    large = {key: sum(hits) / len(hits) for key, hits in cells.items() if len(hits) >= 10}
    worst = worst_named(found)
    assert (worst is None) == (not large)
    if worst is not None:
        assert large[worst["class"], worst["value"]] == worst["accuracy"] == min(large.values())
    # A report of the same counts has the same sides, from the rule by name.
    rule = {name: f"v{rng.integers(0, values)}" for name in names[0]}
    score = {"accuracy": 0.5, "correct": 5, "bias_correct": correct, "bias_count": count}
    split = {"samples": 10, "networks": {"f": {k: _plain(v) for k, v in score.items()}}}
    results = Results.model_validate(
        {
            **{"format": 1, "method": "vanilla", "dataset": "x", "classes": names[0], "steps": 1},
            "chosen_on": "selection",
            "bias": {"attribute": "a", "values": names[1], "aligned": rule},
            "checkpoints": {"last": {"step": 1, "splits": {"test": split}}},
        }
    )
    read = results.checkpoints["last"].splits["test"].networks["f"]
    aligned, conflicting = results.sides(read)
    own = [hit for (name, value), hits in cells.items() if value == rule[name] for hit in hits]
    other = [hit for (name, value), hits in cells.items() if value != rule[name] for hit in hits]
    for side, hits in ((aligned, own), (conflicting, other)):
        assert read.on(side) == (pytest.approx(np.mean(hits)) if hits else None)


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def group(number: int, samples: int, correct: int) -> dict:
    accuracy = correct / samples
    counts = {"samples": samples, "correct": correct, "accuracy": accuracy}
    return {"class": f"c{number}", "value": "v", **counts, "interval": interval(accuracy, samples)}


def test_of_many_groups_a_text_has_the_worst_and_their_number():
    # The smallest group has no right prediction, but too few images to be the worst.
    groups = [group(0, 9, 0), *(group(i, 20, 20 - i % 20) for i in range(1, 31))]
    shown, note = shown_groups(groups)
    assert note == "the worst 5 of 31 groups"
    assert [g["class"] for g in shown] == ["c19", "c18", "c17", "c16", "c15"]
    score = {"accuracy": 0.5, "worst_group": groups[19], "groups": groups}
    score |= {"aligned": 0.75, "aligned_samples": 40, "conflicting": None, "conflicting_samples": 0}
    (line,) = lines("val", {"networks": {"f": score, "g0": {"groups": []}}})
    assert "worst group 0.050* [0.009, 0.236] of 20 (c19, v)" in line
    assert line.endswith("; * the worst group leaves out groups of fewer than 10 images: (c0, v) 9")
    assert "aligned 0.750 [0.598, 0.858] of 40; the worst 5 of 31 groups: " in line
    few = groups[:4]
    assert shown_groups(few)[1] == ""
    assert [g["class"] for g in shown_groups(few)[0]] == ["c3", "c2", "c1", "c0"]
    title, *table = groups_table("val, f", few)
    assert title == "val, f: groups"
    assert table[0].splitlines()[-1].split() == ["c0", "v", "9*", "0.0", "[0.0,", "29.9]"]


@given(sizes=st.lists(st.integers(1, 30), max_size=50))
@settings(max_examples=60, deadline=None)
def test_a_worst_group_that_leaves_out_smaller_ones_has_a_mark_and_a_footnote(sizes):
    groups = [group(number, size, size // 2) for number, size in enumerate(sizes)]
    small = [f"(c{number}, v) {size}" for number, size in enumerate(sizes) if size < 10]
    worst = worst_named(groups)
    score = {"accuracy": 0.5, "standard_error": 0.1, "unbiased": None, "groups": groups}
    score |= {"aligned": None, "conflicting": None, "worst_group": worst}
    score |= {"intervals": {"aligned": None, "conflicting": None}}
    splits = {"test": {"samples": 1000, "networks": {"f": score, "g0": score}}}
    found = table({"last": {"step": 1, "splits": splits}, "best": {"step": 1, "splits": splits}}, 1)
    rows = [line for line in found.splitlines() if line.startswith(("last", "best"))]
    if groups:
        shown = "–" if worst is None else f"{worst['accuracy']:.3f}"
        assert all(f" {shown}{'*' if small else ''}" in row for row in rows)
    notes = [line for line in found.splitlines() if line.startswith("*")]
    assert found.count("*") == (5 if small else 0)
    assert len(notes) == bool(small)
    for note in notes:
        head, _, told = note.partition("images: ")
        assert head == "* test: the worst group leaves out groups of fewer than 10 "
        many = ", ".join(small[:5]) + f" and {len(small) - 5} more"
        assert told == (", ".join(small) if len(small) <= 20 else many)


@pytest.mark.parametrize(
    ("select", "lacking"),
    [
        ("accuracy", None),
        ("worst_group", "no group of class and bias with 10 images or more"),
        ("conflicting", "no image that conflicts with the bias of its class"),
        ("unbiased", "no cell of class and texture cluster with 10 images or more"),
    ],
)
def test_selection_data_without_what_the_choice_needs_are_one_line(tmp_path, select, lacking):
    aligned = {"place": ["land", "water"] * 9}
    for split in ("train", "selection", "test"):
        write_attributes(tmp_path, split, [0, 1] * 9, aligned)
    data = {"dataset": "birds", "root": str(tmp_path), "test_splits": ["test"]}
    config = validate({"data": data, "evaluate": {"select": select}})
    opened = open_data(config, tmp_path)
    if lacking is None:
        check_select(config, opened)
        return
    with pytest.raises(ConfigError) as error:
        check_select(config, opened)
    assert str(error.value) == (
        f"evaluate.select: {select} cannot choose a checkpoint, for selection has {lacking}; "
        "use accuracy, or other selection data"
    )


def test_groups_too_small_to_choose_a_checkpoint_are_named(tmp_path):
    places = {"place": ["land"] * 12 + ["water"] * 12 + ["land"] * 3}
    for split in ("train", "selection", "test"):
        write_attributes(tmp_path, split, [0] * 12 + [1] * 15, places)
    data = {"dataset": "birds", "root": str(tmp_path), "test_splits": ["test"]}
    config = validate({"data": data, "evaluate": {"select": "worst_group"}})
    opened = open_data(config, tmp_path)
    assert too_small(config, opened) == (
        "evaluate.select: worst_group passes over groups of fewer than 10 images in selection: "
        "(waterbird, land) 3"
    )
    assert not too_small(validate({"data": data}), opened)
