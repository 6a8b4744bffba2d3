"""Which attribute is the bias, under which ids, and which value goes with which class."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.format.manifest import Normalize
from rebias_dist import methods
from rebias_dist.config.bias import BiasRule
from rebias_dist.config.files import validate
from rebias_dist.data import ShardDataset, plan_biased_mnist
from rebias_dist.data.bias import Values, majority_rule
from rebias_dist.data.normalisation import Normalise
from rebias_dist.data.splits import open_data
from rebias_dist.errors import ConfigError, DataError
from rebias_dist.methods.bias_balance import prior_of
from rebias_dist.runs.preparation import training_set
from rebias_dist.runs.snapshot import Snapshot
from tests.data.attribute_splits import write_attributes
from tests.evaluation.photographs import write as write_numbered

TRAIN = {
    "place": ["land", "land", "water", "water", "water", ""],
    "day": ["wed", "mon", "mon", "mon", "tue", "tue"],
}
LABELS = [0, 0, 0, 1, 1, 1]
TEST = {"day": ["mon", "tue", "sun", "mon"], "place": ["water", "sea", "land", ""]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The test split has another first attribute, other ids, and values of its own."""
    root = tmp_path_factory.mktemp("shards")
    write_attributes(root, "train", LABELS, TRAIN)
    write_attributes(root, "test", [0, 0, 1, 1], TEST)
    return root


def opened(root, rule=None, **data):
    section = {"dataset": "birds", "root": str(root), "selection": "none", "test_splits": ["test"]}
    config = validate({"data": {**section, **data}, "evaluate": {"monitor": "test"}})
    return open_data(config, root, rule)


def names_of(dataset: ShardDataset) -> list[str]:
    values = [*dataset.values.names, ""]
    return [values[bias] for bias in dataset.bias]


@pytest.mark.parametrize("attribute", [None, "place", "day"])
def test_ids_stand_for_the_same_values_in_every_split(root, attribute):
    data = opened(root, bias=attribute)
    chosen = attribute or "place"
    test = data.tests["test"]
    assert (names_of(data.train), names_of(test)) == (TRAIN[chosen], TEST[chosen])
    # Those of training come first, in its order.
    known = data.train.values.names
    assert test.values.names[: len(known)] == known
    assert data.rule.values == list(test.values.names)
    assert data.rule.attribute == chosen
    again = pickle.loads(pickle.dumps(test))
    assert again.bias.tolist() == test.bias.tolist()
    assert again.values == test.values


def test_the_majority_of_the_training_samples_is_aligned(root):
    place, day = opened(root).rule, opened(root, bias="day").rule
    assert place.aligned == {"landbird": "land", "waterbird": "water"}
    assert day.aligned == {"landbird": "mon", "waterbird": "tue"}
    assert "no value of the bias prevails in 2 of the 2 classes (landbird: 2 of 3" in place.doubt


def test_values_that_tell_nothing_put_the_rule_in_doubt(root, tmp_path):
    for bias, said in (("place", "the place 'sea'"), ("day", "the day 'sun'")):
        doubt = opened(root, bias=bias).rule.doubt
        assert doubt.endswith(
            f"no training image has {said}, so test images with it count as conflicting"
        )
    write_attributes(tmp_path, "train", [0] * 5 + [1] * 5, {"place": ["land"] * 10})
    write_attributes(tmp_path, "test", [0, 1], {"place": ["land", "sea"]})
    doubt = opened(tmp_path).rule.doubt
    assert doubt == "all training images have the place 'land', so it is no bias"
    write_attributes(tmp_path, "some", [0] * 5 + [1] * 5, {"place": ["land"] * 5 + ["sea"] * 5})
    assert opened(tmp_path, train_split="some").rule.doubt == ""


@given(seed=st.integers(0, 2**32 - 1), values=st.integers(1, 5), n=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_the_majority_is_that_of_a_slow_count(seed, values, n):
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in range(values)]
    labels, bias = rng.integers(0, 3, n), rng.integers(-1, rng.integers(0, values) + 1, n)
    rule = majority_rule(Values("x", tuple(names)), "abc", labels, bias)
    pairs = list(zip(labels.tolist(), bias.tolist(), strict=True))
    for label, name in enumerate("abc"):
        counts = [pairs.count((label, value)) for value in range(values)]
        expected = names[counts.index(max(counts))] if any(counts) else None
        assert rule.aligned.get(name) == expected
    unclear = 0
    for label in range(3):
        counts = sorted(pairs.count((label, value)) for value in range(values))
        if any(counts) and values > 1:
            unclear += (counts[-1] - counts[-2]) < 2 * (counts[-1] + counts[-2]) ** 0.5
    assert bool(rule.doubt) == (unclear > 0)
    assert unclear == 0 or f"in {unclear} of the 3 classes" in rule.doubt


def test_a_table_states_the_rule(root, tmp_path):
    table = tmp_path / "rule.csv"
    table.write_text("class,value\nwaterbird,sea\nlandbird,water\n")
    rule = opened(root, aligned=str(table)).rule
    assert rule.aligned == {"landbird": "water", "waterbird": "sea"}
    assert (rule.source, rule.doubt) == ("data.aligned", "")
    # A run that keeps its rule needs neither the table nor the training split's order.
    assert opened(root, rule, aligned="gone.csv").rule == rule


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("class,value\nduck,sea\n", ":2: no class is called 'duck'"),
        ("class,value\nlandbird,air\n", ":2: no value is called 'air'; there are land, water, sea"),
        ("class,value\nlandbird,sea\nlandbird,sea\n", ":3: the class 'landbird' has a row already"),
        ("class,value\nlandbird,sea\n", "has no row for the class 'waterbird'"),
        ("class,place\nlandbird,sea\n", "needs the columns class and value"),
        ("", "needs the columns class and value"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(root, tmp_path, text, named):
    table = tmp_path / "rule.csv"
    if text is not None:
        table.write_text(text)
    with pytest.raises(ConfigError, match=r"data.aligned") as error:
        opened(root, aligned=str(table))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_attribute_is_one_line_with_those_that_exist(root, tmp_path):
    with pytest.raises(ConfigError, match=r"'sky' is no attribute of .*; there are place, day"):
        opened(root, bias="sky")
    write_numbered(tmp_path, "train", [0, 1, 2])
    write_numbered(tmp_path, "test", [0, 1, 2])
    with pytest.raises(ConfigError, match=r"'sky': the shards in .* have no attributes; unset it"):
        opened(tmp_path, bias="sky", dataset="insects")


def test_numbers_have_a_majority_too_and_equality_means_nothing(tmp_path):
    # write() gives the class k the biases k and k + 1 by turns; every third sample has none.
    labels = [0] * 4 + [1] * 4 + [2] * 4
    write_numbered(tmp_path, "train", labels)
    write_numbered(tmp_path, "test", labels[:5])
    data = opened(tmp_path, dataset="insects")
    pairs = list(zip(data.train.labels.tolist(), data.train.bias.tolist(), strict=True))
    for label, name in enumerate(data.classes):
        counts = [pairs.count((label, value)) for value in range(3)]
        assert data.rule.aligned[name] == str(counts.index(max(counts)))
    assert data.rule.attribute is None
    assert data.rule.values == ["0", "1", "2"]
    assert data.tests["test"].values.names == ("0", "1", "2")


def test_a_split_without_the_attribute_has_no_labels(root):
    """Its own first attribute is another property."""
    dataset = ShardDataset(root / "test", bias=Values("colour", ("red",)))
    assert (dataset.bias == -1).all()
    numbers = ShardDataset(root / "test", bias=Values(None, ("0", "1")))
    assert (numbers.bias == -1).all()


def test_an_altered_table_of_attributes_is_found_before_training(tmp_path):
    folder = write_attributes(tmp_path, "train", LABELS, TRAIN)
    content = bytearray((folder / "attributes.npy").read_bytes())
    # The first two samples change places: all counts stay.
    size = 2 * 4
    begin = len(content) - size * len(LABELS)
    first, second = (content[begin + size * i : begin + size * (i + 1)] for i in (0, 1))
    content[begin : begin + 2 * size] = second + first
    (folder / "attributes.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"attributes\.npy: is not the table of attributes"):
        ShardDataset(folder).check_files()


def test_the_rule_of_a_split_with_other_classes_goes_by_name():
    rule = BiasRule(values=["land", "water"], aligned={"a": "land", "b": "water"})
    assert rule.ids(["b", "c", "a"], ["water", "land"]).tolist() == [0, -1, 1]
    assert rule.ids(["b"], ["land"]).tolist() == [1]  # no sample has it


@pytest.mark.parametrize("rho", [0.999, 0.997, 0.995, 0.99, 0.95, 0.9])
def test_the_rule_of_biased_mnist_is_the_colour_of_the_class(rho):
    """So the figures are those of equal numbers, as in versions before there was a rule."""
    shared = {"confusing_colours": 9, "seed": 0, "image_size": 14, "selection_fraction": 0.1}
    _, parts = plan_biased_mnist(rho=rho, **shared)
    train = parts["train"]
    rule = majority_rule(Values(), train.plan.classes, train.labels, train.colours)
    assert rule.aligned == BiasRule.by_number(train.plan.classes).aligned
    assert rule.doubt == ""


def test_where_all_colours_are_alike_the_rule_is_in_doubt():
    shared = {"confusing_colours": 9, "seed": 0, "image_size": 14, "selection_fraction": 0.1}
    _, parts = plan_biased_mnist(rho=0.1, **shared)
    train = parts["train"]
    rule = majority_rule(Values(), train.plan.classes, train.labels, train.colours)
    assert "no value of the bias prevails in" in rule.doubt
    assert "\n" not in rule.doubt


def test_a_bias_number_beyond_any_table_is_one_line(tmp_path):
    folder = write_numbered(tmp_path, "train", [0, 1, 2])
    dataset = ShardDataset(folder)
    dataset.bias = np.full(3, 2**31 - 1, dtype=np.int32)
    with pytest.raises(DataError, match="has the bias 2147483647; the largest that a run takes is"):
        _ = dataset.values


def test_a_resumed_run_must_keep_its_rule(root, tmp_path):
    config = validate({"data": {"dataset": "birds", "root": str(root), "test_splits": ["test"]}})
    method = methods.build(config.method)
    table = tmp_path / "rule.csv"
    table.write_text("class,value\nlandbird,land\nwaterbird,sea\n")
    normalise = Normalise(Normalize(mean=(0.5,) * 3, std=(0.5,) * 3), torch.device("cpu"))
    majority, stated = (
        Snapshot({}, data, (3, 8, 8), config, 1, method, normalise)
        for data in (opened(root), opened(root, aligned=str(table)))
    )
    assert list(stated.changes(majority.state())) == ["data.aligned"]
    assert majority.changes(majority.state()) == {}
    older = {key: value for key, value in majority.state().items() if key != "bias"}
    assert stated.changes(older) == {}


def test_a_value_that_only_other_splits_have_keeps_no_method_from_training(tmp_path):
    values = {"place": ["land", "water", "water", "land"]}
    names = {"place": ("land", "sea", "water")}
    train = ShardDataset(write_attributes(tmp_path, "train", [0, 0, 1, 1], values, names=names))
    known = training_set(train.labels, train.bias, 2, (3, 8, 8), torch.device("cpu"))
    expected = np.log([[0.5, 0.5], [1, 1], [0.5, 0.5]])
    np.testing.assert_allclose(prior_of(known), expected, atol=1e-8)
