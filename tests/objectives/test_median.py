"""The median radius: numpy's, to the bit, whatever holds the rows."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rebias_dist.errors import NonFiniteError
from rebias_dist.objectives import LOCAL, CollapsedFeaturesError, median_distance
from rebias_dist.objectives import median as radius_module
from tests.distributed.ranks import run_ranks


def by_numpy(batches: list[Tensor]) -> float:
    """σ from float64 differences, rounded to float32 as documented."""
    squared = []
    for rows in batches:
        x = rows.double().numpy()
        i, j = np.triu_indices(len(x), 1)
        squared.append(np.square(x[i] - x[j]).sum(1).astype(np.float32))
    return math.sqrt(np.median(np.concatenate(squared).astype(np.float64)))


def random_batches(sizes: tuple[int, ...], width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator) for n in sizes]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    width=st.integers(1, 5),
    levels=st.integers(2, 50),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**31),
)
def test_equals_numpy_with_ties(sizes, width, levels, exponent, seed):
    # Small whole numbers: sums are exact, ties are common, zeros (and -0.0) occur.
    generator = torch.Generator().manual_seed(seed)
    batches = [
        -torch.randint(0, levels, (n, width), generator=generator).float() * 2.0**exponent
        for n in sizes
    ]
    if sum(math.comb(n, 2) for n in sizes) == 0:
        with pytest.raises(ValueError, match="at least two rows"):
            median_distance(batches)
        return
    expected = by_numpy(batches)
    if expected == 0:
        with pytest.raises(CollapsedFeaturesError):
            median_distance(batches)
    else:
        assert median_distance(batches) == expected


@pytest.mark.parametrize("sizes", [(128, 128), (65,), (3,), (2, 2), (600, 1, 0, 64)])
def test_equals_numpy_on_real_numbers(sizes):
    for width in (1, 37, 512):
        batches = random_batches(sizes, width)
        ratio = median_distance(batches) / by_numpy(batches)
        print(f"{sizes} × {width}: relative difference {ratio - 1:.3g}")
        # Two orders of summing in float64 may round differently to float32 now and then.
        assert abs(ratio - 1) < 2**-23


def test_special_values():
    line = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 4, 9
    assert median_distance([line]) == 2.0
    # Pooled 1, 4, 9 and 1e6: the middle two lie in different bins of either pass.
    far = torch.tensor([[0.0], [1e3]])
    assert median_distance([line, far]) == math.sqrt(6.5)
    close = torch.tensor([[0.0], [1e-3]])
    assert median_distance([far, close]) == by_numpy([far, close])
    outlier = torch.cat([line, torch.tensor([[1e30]])])  # its squares overflow, the median not
    assert median_distance([outlier, line]) == 3.0
    assert median_distance([torch.tensor([[0.0], [-0.0], [2.0]])]) == 2.0
    assert median_distance([line.bfloat16(), line.half(), line.double()]) == 2.0
    assert median_distance([line.requires_grad_()]) == 2.0
    for same in (torch.full((6, 3), 0.1), torch.tensor([[-0.0], [0.0], [-0.0], [0.0]])):
        with pytest.raises(CollapsedFeaturesError, match=r"g0: .* 0, so the features have coll"):
            median_distance([same], name="g0")
    with pytest.raises(NonFiniteError, match="overflows float32"):
        median_distance([torch.tensor([[0.0], [1e25], [-1e25]])])
    for bad in (torch.nan, torch.inf):
        with pytest.raises(NonFiniteError, match="f: sampled batch 1 has non-finite rows"):
            median_distance([line, torch.tensor([[0.0], [bad]])], name="f")
    with pytest.raises(ValueError, match="at least two rows"):
        median_distance([])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=3),
    width=st.integers(1, 600),
    exponent=st.integers(-70, 66),
    offset=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    outlier=st.sampled_from([1.0, 1e4, 1e15]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    block=st.sampled_from([7, 512]),
    seed=st.integers(0, 2**31),
)
def test_bounds_enclose_every_distance(sizes, width, exponent, offset, outlier, dtype, block, seed):
    # Down to squares that underflow and up to such that overflow float32, far from the origin.
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n, width, generator=generator) + offset for n in sizes]
    batches[0][0] *= outlier
    batches = [(rows * 2.0**exponent).to(dtype) for rows in batches]
    assume(all(rows.isfinite().all() for rows in batches))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radius_module, "_BLOCK", block)
        counts = [(n,) for n in sizes]
        share = radius_module._Share(batches, counts, 1, LOCAL, "f")
        for tile in share._tiles():
            low, high = tile.bounds()
            exact = tile.distances(torch.arange(len(tile)))
            assert len(low) == len(high) == len(exact) == len(tile)
            assert (low <= exact).all()
            assert (exact <= high).all()
            i, j = tile.pairs()
            by_hand = (tile.a.double()[i] - tile.b.double()[j]).square().sum(1).float()
            assert torch.allclose(exact.view(torch.float32), by_hand, rtol=2**-23, atol=1e-44)
        try:
            found = median_distance(batches)
        except (NonFiniteError, CollapsedFeaturesError):
            return
    assert abs(found / by_numpy(batches) - 1) < 2**-23


def test_few_distances_are_computed(monkeypatch):
    computed = []
    whole = radius_module._Tile.distances

    def counted(tile, chosen):
        computed.append(len(chosen))
        return whole(tile, chosen)

    monkeypatch.setattr(radius_module._Tile, "distances", counted)
    median_distance(random_batches((512,) * 4, 256))
    pairs = 4 * math.comb(512, 2)
    print(f"{sum(computed)} of {pairs}")
    assert 1 <= sum(computed) < pairs / 100


def test_the_callers_precision_changes_nothing():
    # Bounds from products in bfloat16 would not hold.
    batches = random_batches((64, 200), 128)
    expected = median_distance(batches)
    with torch.autocast("cpu", torch.bfloat16):
        products = batches[0] @ batches[0].mT
        assert products.dtype == torch.bfloat16
        assert median_distance(batches) == expected
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert median_distance(batches) == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_bounds_are_computed_again_rather_than_kept(monkeypatch):
    batches = random_batches((130, 70), 16)
    expected = median_distance(batches)
    monkeypatch.setattr(radius_module, "_KEPT", 10)
    assert median_distance(batches) == expected


SIZES, WIDTH, MICRO = (150, 48, 1100, 7), 33, 12


def same_radius_on_all_layouts(world: int) -> list[float]:
    """Contiguous parts, micro-batches dealt in turn, and everything on the last rank."""
    batches = random_batches(SIZES, WIDTH)
    rank = dist.get_rank()
    layouts = [
        [rows.tensor_split(world)[rank] for rows in batches],
        [torch.cat([rows[:0], *rows.split(MICRO)[rank::world]]) for rows in batches],
        [rows if rank == world - 1 else rows[:0] for rows in batches],
    ]
    radii = [median_distance(layout) for layout in layouts]
    radii.append(median_distance(batches, group=LOCAL))
    radius_module._KEPT = 10  # ranks must agree on computing the bounds again
    radii.append(median_distance(layouts[1]))
    return radii


@pytest.mark.parametrize("world", [2, 3, 4])
def test_same_bits_on_any_layout(world):
    expected = median_distance(random_batches(SIZES, WIDTH))
    for radii in run_ranks(world, same_radius_on_all_layouts, world):
        assert radii == [expected] * len(radii)


def ranks_refuse() -> list[str]:
    rank = dist.get_rank()
    good = torch.arange(6.0).view(3, 2)
    cases = [
        [good, torch.full((2, 2), torch.nan if rank else 1.0)],
        [good] * (1 + rank),
        [] if rank else [good],
        [torch.ones(3, 2)],
        [good[:0]],
        [good if rank else good.double()],
    ]
    outcomes = []
    for batches in cases:
        with pytest.raises((NonFiniteError, CollapsedFeaturesError, ValueError)) as caught:
            median_distance(batches)
        outcomes.append(f"{caught.type.__name__}: {caught.value}")
    return outcomes


def test_all_ranks_refuse_alike():
    first, second = run_ranks(2, ranks_refuse)
    assert first == second
    for outcome, part in zip(
        first,
        ["batch 1 has", "got [1, 2]", "got [1, 0]", "collapsed", "two rows", "same width"],
        strict=True,
    ):
        assert part in outcome
