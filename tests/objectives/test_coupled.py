"""Any function of the global batch: the same value and gradients as on one process."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rebias_dist.errors import NonFiniteError
from rebias_dist.objectives import Rows, coupled, coupled_by_rows, gather_features
from tests.distributed.ranks import run_ranks

LAYOUTS = ([7, 3, 13], [10, 0, 5], [8, 8, 8], [1, 1, 2])


def contrastive(x: Tensor, y: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    """A loss over pairs of two sets of features, positives by label and bias."""
    own = Rows((x, y), {"labels": labels, "bias": bias}, torch.arange(len(x)))
    return contrastive_by_rows(own, own)


def contrastive_by_rows(own: Rows, all: Rows) -> Tensor:
    """The same loss as a sum over the rows in ``own``."""
    (x, y), (all_x, all_y) = own.features, all.features
    x, all_x = (torch.nn.functional.normalize(v, dim=1) for v in (x, all_x))
    scores = x @ all_x.T + torch.tanh(y @ all_y.T) / 3
    others = own.index[:, None] != all.index
    same = own.samples["labels"][:, None] == all.samples["labels"]
    positive = same & (own.samples["bias"][:, None] != all.samples["bias"]) & others
    log_share = scores - torch.logsumexp(scores.masked_fill(~others, -torch.inf), 1, keepdim=True)
    terms = -(log_share * positive).sum(1).div(positive.sum(1).clamp(min=1))
    return terms.sum() / len(all.index)


def batch(n: int, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(n, 5, generator=draw, dtype=torch.float64).to(dtype),
        "y": torch.randn(n, 3, generator=draw, dtype=torch.float64).to(dtype),
        "labels": torch.randint(0, 3, (n,), generator=draw),
        "bias": torch.randint(0, 2, (n,), generator=draw, dtype=torch.int16),
    }


def of_rank(values: dict[str, Tensor], counts: list[int]) -> dict[str, Tensor]:
    return {name: v.split(counts)[dist.get_rank()].clone() for name, v in values.items()}


def both_ways(x: Any, y: Any, **samples: Tensor) -> list[list[Any]]:
    found = []
    for way, function in ((coupled, contrastive), (coupled_by_rows, contrastive_by_rows)):
        value = way(function, x, y, **samples)
        local = [v if isinstance(v, Tensor) else v.local for v in (x, y)]
        gradients = torch.autograd.grad(3 * value, local)
        found.append([value.item(), *(g.numpy() for g in gradients)])
    return found


def layouts(seeds: list[int]) -> list[Any]:
    results = []
    for counts in LAYOUTS:
        for seed in seeds:
            mine = of_rank(batch(sum(counts), seed), counts)
            x, y = mine.pop("x").requires_grad_(), mine.pop("y").requires_grad_()
            results += both_ways(x, y, **mine)
            # Gathered before, as a trainer does it for features that serve several objectives.
            results += both_ways(gather_features(x), gather_features(y, counts=counts), **mine)
    return results


def test_values_and_gradients_on_three_ranks():
    seeds = [0, 1]
    cases = iter(zip(*run_ranks(3, layouts, seeds), strict=True))
    largest = 0.0
    for counts in LAYOUTS:
        for seed in seeds:
            whole = batch(sum(counts), seed)
            x, y = whole.pop("x").requires_grad_(), whole.pop("y").requires_grad_()
            expected = contrastive(x, y, **whole)
            gradients = torch.autograd.grad(3 * expected, (x, y))
            for _ in range(4):
                ranks = next(cases)
                assert len({value for value, _, _ in ranks}) == 1, "bits differ between ranks"
                assert ranks[0][0] == pytest.approx(expected.item(), rel=1e-12)
                for place, gradient in enumerate(gradients, start=1):
                    found = np.concatenate([rank[place] for rank in ranks])
                    difference = np.abs(found - gradient.numpy()).max()
                    scale = max(np.abs(gradient.numpy()).max(), 1e-3)
                    largest = max(largest, difference / scale)
    print("largest relative difference of a gradient:", largest)
    assert largest < 1e-12


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    powers=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_random_functions_on_one_process(n, seed, powers, dtype):
    values = batch(n, seed, dtype)
    x, y = values["x"].requires_grad_(), values["y"].requires_grad_()

    def function(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        total = x.new_zeros(())
        for a, b in powers:
            total = total + ((x @ x.T).pow(a) * torch.sin(y @ y.T).pow(b)).sum()
        return total + (labels.to(x.dtype) * x[:, 0]).sum()

    value = coupled(function, x, y, labels=values["labels"])
    expected = function(x, y, values["labels"])
    assert value.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    found = torch.autograd.grad(value, (x, y))
    wanted = torch.autograd.grad(expected, (x, y))
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_usual_loss_of_each_rank_is_another_objective():
    counts = [8, 8, 8]
    whole = batch(24, 3)
    x = whole["x"].requires_grad_()
    rest = {name: whole[name] for name in ("labels", "bias")}
    (true,) = torch.autograd.grad(contrastive(x, whole["y"], **rest), x)
    parts = [v.split(counts) for v in (x, whole["y"], rest["labels"], rest["bias"])]
    usual = sum(contrastive(*part) for part in zip(*parts, strict=True)) / 3
    (each,) = torch.autograd.grad(usual, x)
    off = (each - true).norm() / true.norm()
    print(f"the mean of the ranks' own losses: gradient off by {100 * off:.0f} %")
    assert off > 0.2


def total(x: Tensor, labels: Tensor | None = None) -> Tensor:
    return (x @ x.T).sum()


def faults() -> list[str]:
    rank = dist.get_rank()
    x = torch.ones(3, 2, requires_grad=True)
    cases = {
        "width": lambda: coupled(total, torch.ones(3, 2 + (rank == 1))),
        "dtype": lambda: coupled(total, x.double() if rank else x),
        "integers": lambda: coupled(total, torch.ones(3, 2, dtype=torch.int64)),
        "labels": lambda: coupled(total, x, labels=torch.zeros(3 - (rank == 1))),
        "matrix": lambda: coupled(lambda x: x @ x.T, x),
        "not finite": lambda: coupled(total, x * (torch.inf if rank == 1 else 1)),
    }
    said = []
    for name, call in cases.items():
        try:
            call()
        except (ValueError, NonFiniteError) as error:
            said.append(f"{name}: {type(error).__name__}: {error}")
        dist.barrier()  # nobody waits for a rank that has given up
    return said


def test_faults_are_the_same_on_all_ranks():
    said = run_ranks(2, faults)
    assert said[0] == said[1]
    print(*said[0], sep="\n")
    names = [line.split(":")[0] for line in said[0]]
    assert names == ["width", "dtype", "integers", "labels", "matrix", "not finite"]
    assert "NonFiniteError" in said[0][-1]
    assert "3 rows are not finite" in said[0][-1]


def failing(own: Rows, all: Rows) -> Tensor:
    if 0 in own.index:
        raise ZeroDivisionError("of rank 0")
    return own.features[0].sum()


def uneven() -> list[str]:
    rank = dist.get_rank()
    said = []
    for rows in ((2, 1), (0, 3)):
        x = torch.ones(rows[rank], 2, requires_grad=True)
        try:
            coupled_by_rows(failing, x)
        except (ValueError, ZeroDivisionError) as error:
            said.append(f"{type(error).__name__}: {error}")
        dist.barrier()
    # One rank has a graph, the other has none; one row in all, of kinds of other widths.
    x = torch.ones(1 - rank, 3, dtype=torch.float16, requires_grad=rank == 0)
    value = coupled_by_rows(
        lambda own, all: own.features[0].sum() * all.samples["labels"].sum(),
        x,
        labels=torch.full((1 - rank,), 2),
    )
    return [*said, value.item(), value.requires_grad]


def test_no_rank_waits_for_one_that_failed_or_has_no_rows():
    first, second = run_ranks(2, uneven)
    assert first == ["ZeroDivisionError: of rank 0", first[1], 6.0, True]
    elsewhere = "ElsewhereError: the coupled function failed on another rank, which says why"
    assert second[0] == elsewhere
    assert {first[1], second[1]} == {elsewhere, "ZeroDivisionError: of rank 0"}
    assert second[2] == 6.0


def test_a_value_without_a_graph_has_zero_gradients():
    x = torch.ones(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(coupled(lambda x: x.new_zeros(()), x), x)
    assert gradient.tolist() == [[0, 0]] * 3


def test_float32_under_autocast_and_no_second_derivative():
    values = batch(9, 5, torch.float32)
    x = values["x"].requires_grad_()
    rest = {name: values[name] for name in ("labels", "bias")}
    expected = contrastive(x.double(), values["y"].double(), **rest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = coupled(contrastive, x, values["y"], **rest)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()
