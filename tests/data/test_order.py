import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebias_dist.data.order import epoch_order

COUNTS = st.lists(st.integers(0, 30), max_size=12)


@given(COUNTS, st.integers(0, 2**31), st.integers(0, 1000), st.integers(1, 15))
def test_every_sample_once(counts, seed, epoch, window):
    order = epoch_order(seed, epoch, counts, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(counts)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 5))
def test_a_window_draws_from_its_shards_only(counts, window):
    order = epoch_order(3, 1, counts, window)
    shard_of = np.repeat(np.arange(len(counts)), counts)[order]
    seen: set[int] = set()
    position = 0
    while position < len(order):
        # The shards of a window are finished before the next window's are touched.
        members: set[int] = set()
        end = position
        while end < len(order) and (shard_of[end] in members or len(members) < window):
            members.add(int(shard_of[end]))
            end += 1
        complete = sum(counts[s] for s in members)
        assert complete == end - position
        assert not members & seen
        seen |= members
        position = end


def test_epochs_and_seeds_differ():
    orders = [epoch_order(s, e, [50] * 6, 2) for s in (0, 1) for e in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).mean() < 0.1


def test_positions_are_uniform_over_epochs():
    counts, epochs = [10] * 4, 800
    orders = np.array([epoch_order(0, e, counts, 8) for e in range(epochs)])
    first = np.bincount(orders[:, 0], minlength=40)
    chi2 = ((first - epochs / 40) ** 2 / (epochs / 40)).sum()
    print(f"chi-squared of the first sample over {epochs} epochs: {chi2:.1f}, 39 expected")
    assert chi2 < 73  # the 99.9 % quantile with 39 degrees of freedom


def test_order_is_frozen():
    # A change here would make every stored run resume with other samples.
    assert epoch_order(7, 3, [3, 2, 4], 2).tolist() == [8, 7, 6, 1, 0, 5, 2, 3, 4]


@pytest.mark.parametrize("counts", [[], [0], [1]])
def test_degenerate_sizes(counts):
    assert epoch_order(0, 0, counts).tolist() == list(range(sum(counts)))
