"""The losses over pairs against double loops, on any split of the rows, and on ranks."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from rebias_dist.methods import end, fairkl
from rebias_dist.methods.biascon import biascon
from rebias_dist.methods.eps_supcon import eps_supcon
from rebias_dist.methods.eps_supinfonce import eps_supinfonce
from rebias_dist.methods.flac import flac
from rebias_dist.methods.softcon import softcon
from rebias_dist.objectives import Rows, coupled_by_rows
from tests.distributed.ranks import run_ranks
from tests.support.whole_batch import of_whole_batch

T, EPSILON = 0.3, 0.4
ROW_PARALLEL = {
    "biascon": partial(biascon, temperature=T),
    "softcon": partial(softcon, temperature=T),
    "eps_supinfonce_out": partial(eps_supinfonce, temperature=T, epsilon=EPSILON),
    "eps_supinfonce_in": partial(eps_supinfonce, temperature=T, epsilon=EPSILON, form="in"),
    "eps_supcon": partial(eps_supcon, temperature=T, epsilon=EPSILON),
}


def batch(n, views, seed, classes=3):
    draw = torch.Generator().manual_seed(seed)

    def normal(width):
        return torch.randn(n, width, generator=draw, dtype=torch.float64)

    return [normalize(normal(4)) for _ in range(views)], {
        "labels": torch.randint(0, classes, (n,), generator=draw),
        "bias": torch.randint(0, 2, (n,), generator=draw),
        "bias_features": normal(3),
    }


def slow_contrast(name, views, samples):
    """The formulas with a loop over anchors and a loop over pairs, in plain numbers."""
    n = len(samples["labels"])
    points = [(i, view[i].tolist()) for view in views for i in range(n)]
    y, b = samples["labels"].tolist(), samples["bias"].tolist()
    h = normalize(samples["bias_features"]).tolist()

    def dot(p, q):
        return sum(u * v for u, v in zip(p, q, strict=True))

    total = 0.0
    for a, (i, x) in enumerate(points):
        raw = [dot(x, other) / T for _, other in points]
        A = [value - max(raw) for value in raw]
        others = [k for k in range(len(points)) if k != a]
        positive = [k for k in others if y[points[k][0]] == y[i]]
        negative = sum(math.exp(A[k]) for k in others if y[points[k][0]] != y[i])
        both = sum(math.exp(A[k]) for k in positive)
        omega = math.exp(-EPSILON)
        if name in ("biascon", "softcon"):
            denominator = sum(math.exp(A[k]) for k in others) + 1e-9
            weights = {
                k: float(b[points[k][0]] != b[i])
                if name == "biascon"
                else (1 - dot(h[i], h[points[k][0]])) * (points[k][0] != i)
                for k in positive
            }
            added = sum(w * (A[k] - math.log(denominator)) for k, w in weights.items())
            total -= added / (sum(weights.values()) or 1)
            continue
        if name == "eps_supinfonce_in":
            if not positive:
                return math.inf
            mean = omega / len(positive) * both
            added = math.log(both) - math.log(mean + negative)
        elif name == "eps_supcon":
            added = sum(A[k] - math.log(omega * both + negative + 1e-6) for k in positive)
            added /= max(len(positive), 1)
        else:
            added = sum(A[k] - math.log(omega * math.exp(A[k]) + negative + 1e-6) for k in positive)
            added /= max(len(positive), 1)
        total -= T / 0.07 * added
    return total / len(points)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(list(ROW_PARALLEL)),
    n=st.integers(1, 8),
    views=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_contrastive_losses_equal_double_loops(name, n, views, seed):
    sets, samples = batch(n, views, seed)
    found = of_whole_batch(ROW_PARALLEL[name], *sets, **samples)
    expected = slow_contrast(name, sets, samples)
    if math.isfinite(expected):
        assert float(found) == pytest.approx(expected, rel=1e-10)
    else:
        assert not found.isfinite()


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(list(ROW_PARALLEL)),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    views=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_any_split_of_the_rows_adds_up_to_the_whole_batch(name, cuts, views, seed):
    sets, samples = batch(12, views, seed, classes=2)
    for leaf in sets:
        leaf.requires_grad_()
    function = ROW_PARALLEL[name]
    whole = of_whole_batch(function, *sets, **samples)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    everything = Rows(tuple(sets), samples, torch.arange(12))
    parts = [
        function(
            Rows(
                tuple(leaf[index] for leaf in sets),
                {key: values[index] for key, values in samples.items()},
                index,
            ),
            everything,
        )
        for index in order.tensor_split(sorted(cuts))
        if len(index)
    ]
    total = torch.stack(parts).sum()
    if not whole.isfinite():
        assert not total.isfinite()
        return
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    for mine, other in zip(
        torch.autograd.grad(total, sets), torch.autograd.grad(whole, sets), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


COUNTS = [5, 0, 9]


def softcon_of_ranks(seed):
    sets, samples = batch(sum(COUNTS), 2, seed)
    rank = dist.get_rank()
    local = [leaf.split(COUNTS)[rank].clone().requires_grad_() for leaf in sets]
    rest = {key: values.split(COUNTS)[rank].clone() for key, values in samples.items()}
    value = coupled_by_rows(ROW_PARALLEL["softcon"], *local, **rest)
    gradients = torch.autograd.grad(value, local)
    return value.item(), [gradient.numpy() for gradient in gradients]


def test_softcon_on_three_ranks():
    sets, samples = batch(sum(COUNTS), 2, 5)
    for leaf in sets:
        leaf.requires_grad_()
    whole = of_whole_batch(ROW_PARALLEL["softcon"], *sets, **samples)
    ranks = run_ranks(3, softcon_of_ranks, 5)
    assert len({value for value, _ in ranks}) == 1
    assert ranks[0][0] == pytest.approx(whole.item(), rel=1e-12)
    for view, expected in enumerate(torch.autograd.grad(whole, sets)):
        found = np.concatenate([gradients[view] for _, gradients in ranks])
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-11, atol=1e-13)


def test_equal_bias_features_are_no_positives_of_softcon():
    """Rounding of 1 - cos is not scaled up to a weight."""
    sets, samples = batch(8, 2, 3, classes=2)
    samples["bias_features"] = torch.randn(1, 3, dtype=torch.float64).expand(8, 3)
    scaled = samples["bias_features"] * torch.arange(1, 9)[:, None]
    value = of_whole_batch(ROW_PARALLEL["softcon"], *sets, **samples | {"bias_features": scaled})
    assert value.item() == 0


def pair_sets(y, b, i, j):
    return ("pa" if b[i] == b[j] else "pc") if y[i] == y[j] else ("na" if b[i] == b[j] else "nc")


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_fairkl_equals_double_loops(n, seed):
    (x,), samples = batch(n, 1, seed)
    y, b = samples["labels"].tolist(), samples["bias"].tolist()
    members = {name: [] for name in ("pa", "pc", "na", "nc")}
    filled = {name: np.zeros((n, n)) for name in members}
    for i in range(n):
        for j in range(n):
            name = pair_sets(y, b, i, j)
            filled[name][i, j] = float(x[i] @ x[j])
            members[name].append((i != j, filled[name][i, j]))
    mean = {name: np.mean([s for _, s in found] or [0.0]) for name, found in members.items()}
    std = {name: np.std(matrix, ddof=1) for name, matrix in filled.items()}
    first = (mean["pc"] - mean["pa"]) ** 2 + (mean["na"] - mean["nc"]) ** 2
    expected = first - mean["pc"] + mean["na"]
    expected += 0.6 * ((std["pa"] - std["pc"]) ** 2 + (std["na"] - std["nc"]) ** 2)
    found = fairkl.fairkl(x, samples["labels"], samples["bias"], kld=0.6)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    expected = 0.0
    for a, c in (("pa", "pc"), ("na", "nc")):
        s, t = ([v for other, v in members[name] if other] for name in (a, c))
        if len(s) > 1 and len(t) > 1:
            ours, theirs = (
                torch.distributions.Normal(np.mean(v), max(np.var(v), 1e-6) ** 0.5) for v in (s, t)
            )
            expected += float(torch.distributions.kl_divergence(ours, theirs))
    found = fairkl.fairkl(x, samples["labels"], samples["bias"], form="paper")
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_fairkl_without_pairs_of_a_set_has_finite_gradients():
    (x,), _ = batch(6, 1, 0)
    x.requires_grad_()
    same = torch.zeros(6, dtype=torch.int64)
    for labels, bias in ((same, same), (same, torch.arange(6)), (torch.arange(6), same)):
        for form in ("authors", "paper"):
            value = fairkl.fairkl(x, labels, bias, form=form)
            (gradient,) = torch.autograd.grad(value, x)
            assert value.isfinite()
            assert gradient.isfinite().all()


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    exponent=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_flac_equals_double_loops(n, seed, exponent):
    (x,), samples = batch(n, 1, seed)
    h, y = normalize(samples["bias_features"]), samples["labels"].tolist()

    def similarity(a):
        return [
            [1 / (1 + math.sqrt(float(((p - q) ** 2).sum()) + 1e-6) ** exponent) for q in a]
            for p in a
        ]

    s, t = similarity(h), similarity(x)
    threshold = (max(map(max, s)) + min(map(min, s))) / 2
    selected = [
        (i, j)
        for i in range(n)
        for j in range(n)
        if (s[i][j] < threshold if y[i] == y[j] else s[i][j] > threshold)
    ]
    total = 0.0
    for i, j in selected:
        row = [k for a, k in selected if a == i]
        p = (1 - s[i][j]) / (sum(1 - s[i][k] for k in row) + 1e-7)
        q = t[i][j] / (sum(t[i][k] for k in row) + 1e-7)
        total += (p - q) * (math.log(p) - math.log(q))
    expected = total / max(len(selected), 1)
    found = flac(x, samples["bias_features"], samples["labels"], exponent=exponent, normalised=True)
    assert float(found) == pytest.approx(expected, rel=1e-8, abs=1e-14)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_end_equals_double_loops_in_any_order(n, seed):
    (x,), samples = batch(n, 1, seed)
    y, b = samples["labels"].tolist(), samples["bias"].tolist()
    pairs = [(i, j) for i in range(n) for j in range(i)]
    sums, apart = dict.fromkeys(b, 0.0), []
    for i, j in pairs:
        product = float(x[i] @ x[j])
        if b[i] == b[j]:
            sums[b[i]] += product
        elif y[i] == y[j]:
            apart.append((1 + product) / 2)
    count = sum(b[i] == b[j] for i, j in pairs)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    labels, bias = samples["labels"], samples["bias"]
    found = end.disentangle(x[order], bias[order])
    expected = sum(map(abs, sums.values())) / max(count, 1)
    assert float(found) == pytest.approx(expected, rel=1e-10, abs=1e-14)
    found = end.entangle(x[order], labels[order], bias[order])
    expected = 1 - np.mean(apart) if apart else 0.0
    assert float(found) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("name", list(ROW_PARALLEL))
def test_float32_is_near_float64_at_a_low_temperature(name):
    sets, samples = batch(32, 2, 11)
    function = partial(ROW_PARALLEL[name], temperature=0.07)
    precise = of_whole_batch(function, *sets, **samples)
    found = of_whole_batch(function, *(x.float() for x in sets), **samples)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(precise.item(), rel=1e-5)
