"""Draws with replacement: their weights, their frequencies, and the same ones on any layout."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rebias_dist.config.data import AugmentConfig, DataConfig
from rebias_dist.config.files import validate
from rebias_dist.data import ShardDataset, TrainTransform
from rebias_dist.data.sampling import Draws, draws_of
from rebias_dist.errors import ConfigError
from tests.data.layouts import SEED, N, assert_equal, merged
from tests.data.test_damage import damage

CLASSES = ("ant", "bee", "cow")
PAIRS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 4])), min_size=1, max_size=60)


def _draws(sampling: str, pairs) -> Draws:
    labels, bias = (np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True))
    draws = draws_of(DataConfig(sampling=sampling), labels, bias, CLASSES)
    assert draws is not None
    return draws


def _chances(draws: Draws) -> list[float]:
    """Return the chance of each sample."""
    found = np.zeros(len(draws.members))
    groups = np.repeat(np.arange(len(draws.sizes)), draws.sizes)
    found[draws.members] = (draws.weights / draws.weights.sum() / draws.sizes)[groups]
    return found.tolist()


@given(PAIRS)
@settings(deadline=None)
def test_balanced_weights_are_those_of_the_counts(pairs):
    def is_right(sampling, key):
        counts = Counter(map(key, pairs))
        expected = [1 / counts[key(pair)] / len(counts) for pair in pairs]
        assert _chances(_draws(sampling, pairs)) == pytest.approx(expected, rel=1e-12)

    labels, biases = ({pair[place] for pair in pairs} for place in (0, 1))
    if len(labels) == len(CLASSES):
        is_right("class_balanced", lambda pair: pair[0])
    if len(set(pairs)) == len(CLASSES) * len(biases):
        is_right("group_balanced", lambda pair: pair)
    else:
        with pytest.raises(
            ConfigError, match="group_balanced needs samples of the class"
        ) as caught:
            _draws("group_balanced", pairs)
        named = str(caught.value).split("class '")[1]
        assert not any(
            named.startswith(f"{CLASSES[label]}' with bias {bias},") for label, bias in pairs
        )


@given(PAIRS, st.floats(1.001, 100))
@settings(deadline=None)
def test_conflicting_weights_are_biascons(pairs, ratio):
    of_class, of_pair = Counter(label for label, _ in pairs), Counter(pairs)
    assume(len(of_pair) > len(of_class))
    # 1 / p(bias | class), clipped at ratio times the smallest.
    plain = [1 / (of_pair[pair] / of_class[pair[0]]) for pair in pairs]
    clipped = [min(weight, ratio * min(plain)) for weight in plain]
    expected = [weight / sum(clipped) for weight in clipped]
    found = _chances(_draws(f"bias_conflicting:{ratio!r}", pairs))
    assert found == pytest.approx(expected, rel=1e-12)


def _chi_squared(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("sampling", ["class_balanced", "group_balanced", "bias_conflicting:5"])
def test_frequencies_are_the_weights(sampling):
    pairs = [(0, 0)] * 20 + [(0, 1)] * 2 + [(1, 0)] * 5 + [(1, 1)] * 30 + [(2, 0)] + [(2, 1)] * 12
    draws = _draws(sampling, pairs)
    epochs = 400
    orders = np.array([draws.order(3, epoch) for epoch in range(epochs)])
    assert orders.shape == (epochs, len(pairs))
    expected = np.array(_chances(draws)) * orders.size
    of_samples = _chi_squared(np.bincount(orders.ravel(), minlength=len(pairs)), expected)
    # Neighbouring draws are independent: pairs of classes occur as the product says.
    labels = np.array([label for label, _ in pairs])[orders]
    p = np.array([sum(np.array(_chances(draws))[labels_of]) for labels_of in _by_class(pairs)])
    couples = 3 * labels[:, 0::2] + labels[:, 1::2]
    of_couples = _chi_squared(
        np.bincount(couples.ravel(), minlength=9), np.outer(p, p).ravel() * couples.size
    )
    print(f"chi-squared {of_samples:.1f} (69 expected), of couples {of_couples:.1f} (8 expected)")
    assert of_samples < 112  # the 99.9 % quantile with 69 degrees of freedom
    assert of_couples < 26.2  # with 8


def _by_class(pairs):
    labels = np.array([label for label, _ in pairs])
    return [np.flatnonzero(labels == label) for label in range(3)]


def test_the_draws_are_frozen():
    # A change here would make every stored run resume with other samples.
    draws = _draws("group_balanced", [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0)])
    assert draws.order(7, 3).tolist() == [2, 0, 4, 2, 3]
    assert draws.order(7, 4).tolist() != draws.order(7, 3).tolist()
    assert draws.order(8, 3).tolist() != draws.order(7, 3).tolist()


@pytest.mark.parametrize("sampling", ["group_balanced", "bias_conflicting:10"])
def test_data_without_bias_labels(sampling):
    pairs = [(0, -1), (1, 0), (2, -1)]
    with pytest.raises(ConfigError, match="needs bias labels, but 2 of the 3 training samples"):
        _draws(sampling, pairs)
    assert _chances(_draws("class_balanced", pairs)) == [1 / 3] * 3


def test_a_class_without_samples():
    pairs = [(0, 0), (0, 1), (2, 1)]
    with pytest.raises(ConfigError, match=r"samples of the class 'bee', but the training split"):
        _draws("class_balanced", pairs)
    assert sum(_chances(_draws("bias_conflicting:2", pairs))) == pytest.approx(1)


def test_nothing_conflicts_with_a_single_bias():
    with pytest.raises(ConfigError, match="finds one bias label in each class"):
        _draws("bias_conflicting:10", [(0, 1), (1, 0), (1, 0)])


@pytest.mark.parametrize(
    "sampling",
    ["balanced", "bias_conflicting", "bias_conflicting:", "bias_conflicting:1",
     "bias_conflicting:nan", "bias_conflicting:inf", "bias_conflicting:x", "uniform:2"],
)  # fmt: skip
def test_unknown_sampling_is_one_line(sampling):
    with pytest.raises(ConfigError, match=f"^data.sampling: '{sampling}' is not known; use") as e:
        validate({"data": {"sampling": sampling}})
    assert "\n" not in str(e.value)


# ------------------------------------------------------------------ through the loader


@pytest.fixture(scope="module")
def dataset(shards):
    return ShardDataset(shards / "train")


def _options(dataset):
    draws = draws_of(
        DataConfig(sampling="bias_conflicting:20"), dataset.labels, dataset.bias,
        dataset.manifest.classes,
    )  # fmt: skip
    transform = TrainTransform(None, 3, AugmentConfig(rotation=20.0, hue=0.3))
    return {"epoch": 1, "transform": transform, "views": 2, "draws": draws}


def test_steps_are_cut_from_the_draws(dataset):
    options = _options(dataset)
    steps = merged(dataset, 1, 0, **options)
    order = options["draws"].order(SEED, 1)
    ids = torch.cat([batch.samples for step in steps for batch in step])
    assert ids.tolist() == order[: 6 * N].tolist()
    assert len(set(ids.tolist())) < 6 * N
    # A sample that is drawn again is augmented anew.
    place = {}
    for step in steps:
        for batch in step:
            for sample, image in zip(batch.samples.tolist(), batch.images, strict=False):
                place.setdefault(sample, []).append(image)
    copies = [images for images in place.values() if len(images) > 1]
    assert copies
    for images in copies:
        assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_any_layout_draws_the_same(dataset):
    options = _options(dataset)
    reference = merged(dataset, 1, 0, **options)
    for world, workers in ((2, 0), (3, 1), (4, 0), (1, 2)):
        for start in (0, 3):
            found = merged(dataset, world, workers, start=start, **options)
            assert_equal(reference[start:], found)

    def rows(steps):
        found = []
        for step in steps:
            views = [batch.images.chunk(2) for batch in step]
            found.append(torch.cat([torch.cat(view) for view in zip(*views, strict=True)]))
        return found

    # The micro-batch decides which samples share a forward pass, and nothing else.
    other = merged(dataset, 2, 0, micro_batch=10, **options)
    assert all(map(torch.equal, rows(reference), rows(other)))


def test_a_damaged_sample_is_replaced_by_another_draw(shards, tmp_path):
    split = shutil.copytree(shards / "train", tmp_path / "train")
    dataset = ShardDataset(split)
    options = {**_options(dataset), "on_damaged": "skip"}
    order = options["draws"].order(SEED, 1)
    often = Counter(order.tolist()).most_common(1)[0][0]
    damage(split, [often])
    dataset = ShardDataset(split)
    reference = merged(dataset, 1, 0, **options)
    ids = torch.cat([batch.samples for step in reference for batch in step]).numpy()
    assert often not in ids
    assert (ids != order[: len(ids)]).sum() == (order[: len(ids)] == often).sum() > 1
    assert_equal(reference, merged(dataset, 3, 1, **options))
