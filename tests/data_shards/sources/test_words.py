"""The numbers that the words of a column get, however they are spelled."""

import argparse

import pytest

from data_shards.commands.tables import add_arguments
from data_shards.errors import UsageError
from data_shards.sources.words import numbered, split_names


def classes_of(labels, order):
    """Return the names of the classes, and the name of each label's class."""
    cells = [(f"z.csv:{line}", label) for line, label in enumerate(labels, 2)]
    names, ids = numbered("label", cells, order.split(",") if order else [], "--classes")
    return names, [names[ids[label]] for label in labels]


SPELLINGS = [("0", "1"), ("00", "01"), ("0.0", "1.0"), ("+0", " 1 "), ("000", "1.00")]


@pytest.mark.parametrize("labels", SPELLINGS)
@pytest.mark.parametrize("given", SPELLINGS)
def test_an_order_of_numbers_names_the_same_numbers_in_any_spelling(labels, given):
    zero, one = (word.strip() for word in given)
    for order, expected in (
        (f"{zero},{one}", (zero, one)),
        (f"{one},{zero}", (one, zero)),
        (f"{one},5,{zero}", (one, "5", zero)),
        (f"{one},{zero},none", (one, zero, "none")),
    ):
        assert classes_of(labels, order) == (expected, [zero, one])


@pytest.mark.parametrize("labels", SPELLINGS)
def test_names_that_are_no_numbers_are_those_of_0_and_1(labels):
    assert classes_of(labels, "land,water") == (("land", "water"), ["land", "water"])
    assert classes_of((*labels, "2"), "0,1,rest")[1] == ["0", "1", "rest"]
    assert classes_of(labels, "") == (("0", "1"), ["0", "1"])


def test_numbers_that_do_not_begin_at_0_are_found_in_the_order():
    assert classes_of(("01", "02"), "02,01") == (("02", "01"), ["01", "02"])
    assert classes_of(("-1.0", "1.0"), "1,-1") == (("1", "-1"), ["-1", "1"])
    assert classes_of(("0.5", "10.0"), "10,0.50") == (("10", "0.50"), ["0.50", "10"])


@pytest.mark.parametrize(
    ("labels", "order", "words"),
    [
        (("0", "1"), "0,1,00", "--classes: 0 and 00 are the same number; give one of them"),
        (("0", "1"), "1,2", "--classes: has the number 1, but not 0, which the label has; give"),
        (("00", "01"), "1,few", "--classes: has the number 1, but not 00, which the label has"),
        (("0", "1", "2"), "1,0,rest", "--classes: has the number 1, but not 2, which the label"),
        (("0", "1", "2"), "0,1", "--classes: names 2, but the label has the numbers 0, 1, 2; the"),
        (("1", "2"), "a,b", "names 2, but the label has the numbers 1, 2; the names are those of"),
    ],
)
def test_an_order_that_could_be_meant_in_two_ways_is_refused(labels, order, words):
    with pytest.raises(UsageError) as caught:
        classes_of(labels, order)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def splits_of(words, names=()):
    """Return the name of the split of each word."""
    cells = [(f"z.csv:{line}", word) for line, word in enumerate(words, 2)]
    found = split_names(cells, dict(names))
    return [found[word] for word in words]


@pytest.mark.parametrize("words", [(*spelling, "2") for spelling in SPELLINGS])
@pytest.mark.parametrize("given", [(*spelling, "2.0") for spelling in SPELLINGS])
def test_numbers_of_splits_are_named_in_any_spelling(words, given):
    names = ("train", "selection", "test")
    assert splits_of(words, zip(given, names, strict=True)) == [*names]


@pytest.mark.parametrize(
    "words",
    [
        ("0", "1", "2"),
        ("0.0", "1.0", "2.0"),
        ("00", "01"),
        ("1", "10", "2", "9", "11", "3"),
        ("-1", "0", "1"),
        ("0", "train", "Selection"),
        ("1", "a/b", "test"),
    ],
)
def test_the_example_for_numbers_is_accepted_as_it_is_printed(words):
    with pytest.raises(UsageError, match="the splits are numbers") as caught:
        splits_of(words)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    option = str(caught.value).partition("such as ")[2]
    pairs = parser.parse_args(["z.csv", *option.split(" ")]).splits
    names = dict(pair.split("=") for pair in pairs.split(","))
    found = splits_of(words, names.items())
    assert len({*map(str.casefold, found)}) == len(words)
    assert found[words.index("train") if "train" in words else 0] == "train"


def test_blank_cells_and_many_numbers_leave_the_example_readable():
    with pytest.raises(UsageError, match=r"\(0, 1\); .* 0=train,1=selection$"):
        splits_of(["1", "", "0"])
    with pytest.raises(UsageError, match=r"\(0, 1, 2, 3, 4\); .* 0=train,.*,19=split-16,…$"):
        splits_of([str(n) for n in range(300)])


@pytest.mark.parametrize(
    ("words", "names", "told"),
    [
        (["3.0"], {"0.0": "train", "2.0": "test"}, "the split '3' is none of --splits; add 3=NAME"),
        (["trian"], {"train": "train"}, "'trian' is none of --splits (did you mean 'train'?); add"),
        (["0"], {"0": "train", "0.0": "test"}, "--splits: 0.0=test and 0=train name the same"),
        (["a=b"], {"a": "b"}, "the split 'a=b' has a ',' or '='; correct the cell"),
        (["a,b"], {}, "the split 'a,b' has a ',' or '='; correct the cell"),
    ],
)
def test_splits_without_one_name_are_refused(words, names, told):
    with pytest.raises(UsageError) as caught:
        splits_of(words, names.items())
    assert told in str(caught.value)
