"""HSIC on real gloo ranks: the same value and gradient as on one process, without surprises."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rebias_dist.errors import ConfigError, NonFiniteError
from rebias_dist.objectives import LOCAL, gather_features, hsic
from tests.distributed.ranks import run_ranks
from tests.objectives import reference
from tests.objectives.reference import assert_equal_to, dependent

LAYOUTS = ([8, 8, 8], [7, 3, 13], [10, 0, 5], [1, 1, 2], [100, 80, 120])
SIGMA, TAU = 2.3, 1.9


def own(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    return rows.split(counts)[dist.get_rank()].clone()


def value_and_gradients(x: Any, y: Any, **options: Any) -> list[Any]:
    x, y = x.requires_grad_(), y.requires_grad_()
    value = hsic(x, y, SIGMA, TAU, **options)
    return [value.item(), *(g.numpy() for g in torch.autograd.grad(value, (x, y)))]


def layouts_and_tiles() -> list[Any]:
    results = []
    for counts in LAYOUTS:
        x, y = dependent(sum(counts), 5, 3)
        for tile in tiles(sum(counts)):
            for estimator in ("unbiased", "biased"):
                results.append(
                    value_and_gradients(
                        own(x, counts), own(y, counts), tile=tile, estimator=estimator
                    )
                )
    return results


def tiles(n: int) -> tuple[int, ...]:
    return (1, 5, n, n + 1) if n < 100 else (64, n + 1)


def test_layouts_and_tiles():
    per_rank = run_ranks(3, layouts_and_tiles)
    cases = iter(zip(*per_rank, strict=True))
    for counts in LAYOUTS:
        x, y = (v.requires_grad_() for v in dependent(sum(counts), 5, 3))
        for tile in tiles(sum(counts)):
            for expected_by in (reference.unbiased, reference.biased):
                ranks = next(cases)
                label = f"{counts} tile {tile} {expected_by.__name__}"
                expected = expected_by(x, y, SIGMA, TAU)
                gradients = torch.autograd.grad(expected, (x, y))
                assert len({value for value, _, _ in ranks}) == 1, f"{label}: bits differ"
                scale = reference.value_scale(x.detach(), y.detach(), SIGMA, TAU)
                value = torch.tensor(ranks[0][0], dtype=torch.float64)
                assert_equal_to(1e-12, value, expected, scale, f"{label} H")
                for which, gradient in enumerate(gradients, start=1):
                    joined = torch.cat([torch.from_numpy(rank[which]) for rank in ranks])
                    assert_equal_to(1e-12, joined, gradient, 0, f"{label} ∂{which}")


def single_rank_backward_and_local() -> list[Any]:
    """Rank 0 alone calls backward, and hsic on its own rows: either would hang if it waited."""
    counts = [6, 2, 4]
    x, y = dependent(12, 3, 3)
    mine = own(x, counts).requires_grad_()
    value = hsic(mine, own(y, counts), SIGMA, TAU, tile=4)
    if dist.get_rank() != 0:
        return []
    value.backward()
    alone = hsic(x, y, SIGMA, TAU, group=LOCAL)
    assert mine.grad is not None
    return [value.item(), alone.item(), mine.grad.numpy()]


def subgroup_and_reuse() -> list[float]:
    """Ranks 0 and 2 share a batch that rank 1 knows nothing of; one gather serves three calls."""
    pair = dist.new_group([0, 2])
    if dist.get_rank() == 1:
        return []
    counts = [9, 0, 5]
    x, y = dependent(14, 3, 3)
    held = [9, 5]
    fx = gather_features(own(x, counts).requires_grad_(), counts=held, group=pair, async_op=True)
    fy = gather_features(own(y, counts), counts=held, group=pair, async_op=True)
    values = [hsic(fx, fy, s, TAU, check=False) for s in (SIGMA, 2 * SIGMA)]
    values.append(hsic(fx.detach(), own(y, counts), SIGMA, TAU))
    assert (fx.offset, fx.counts) == ((0, 9)[dist.get_rank() == 2], (9, 5))
    assert [v.requires_grad for v in values] == [True, True, False]
    return [v.item() for v in values]


def half_precision() -> list[Any]:
    counts = [20, 4, 16]
    x, y = (own(v.bfloat16(), counts) for v in dependent(40, 8, 8))
    half = hsic(x, y, SIGMA, TAU).item()
    return [*value_and_gradients(x.float(), y.float()), half]


def several(*functions: Callable[[], Any]) -> list[Any]:
    return [function() for function in functions]


def test_communication_groups_and_half_precision():
    ranks = run_ranks(3, several, single_rank_backward_and_local, subgroup_and_reuse,
                      half_precision)  # fmt: skip
    x, y = dependent(12, 3, 3)
    x.requires_grad_()
    expected = reference.unbiased(x, y, SIGMA, TAU)
    (gradient,) = torch.autograd.grad(expected, x)
    value, alone, mine = ranks[0][0]
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert alone == pytest.approx(expected.item(), rel=1e-12)
    assert_equal_to(1e-12, torch.from_numpy(mine), gradient[:6], float(gradient.abs().max()), "∂x")

    x, y = dependent(14, 3, 3)
    expected_values = [reference.unbiased(x, y, s, TAU).item() for s in (SIGMA, 2 * SIGMA, SIGMA)]
    for rank in (0, 2):
        assert ranks[rank][1] == pytest.approx(expected_values, rel=1e-12)

    for _, _, (single, _, _, half) in ranks:
        print(f"bfloat16 features: {half} and {single} for the same in float32")
        assert half == pytest.approx(single, rel=1e-6)


def outcome(function: Callable[[], Any]) -> tuple[str, str]:
    try:
        return "value", str(function())
    except (ConfigError, NonFiniteError, ValueError) as error:
        return type(error).__name__, str(error)


def refusals() -> list[tuple[str, str]]:
    rank = dist.get_rank()
    outcomes = []
    for bad in (torch.nan, torch.inf, 1e20):
        for tile in (2, 64):
            x, y = (v.float() for v in dependent(12, 3, 3))
            x[9, 0] = bad
            x, y = own(x, [4, 4, 4]), own(y, [4, 4, 4])
            outcomes.append(outcome(lambda: hsic(x, y, 1.0, 1.0, tile=tile)))  # noqa: B023
            values = value_and_gradients(x, y, tile=tile, check=False)
            everywhere = all(torch.as_tensor(v).isnan().all() for v in values)
            outcomes.append(("value", str(everywhere)))
    ragged = torch.zeros(1, 2)
    outcomes.append(outcome(lambda: hsic(ragged, ragged, 1.0, 1.0)))  # N = 3
    wrong_width = torch.zeros(4, 3 if rank == 1 else 2)
    outcomes.append(outcome(lambda: hsic(wrong_width, wrong_width, 1.0, 1.0)))
    wrong_rows = torch.zeros(5 if rank == 2 else 4, 2)
    outcomes.append(outcome(lambda: hsic(torch.zeros(4, 2), wrong_rows, 1.0, 1.0)))
    wrong_rank = torch.zeros(4, 2) if rank else torch.zeros(4)
    outcomes.append(outcome(lambda: hsic(wrong_rank, wrong_rank, 1.0, 1.0)))
    wrong_type = torch.zeros(4, 2, dtype=torch.float16 if rank == 1 else torch.float32)
    outcomes.append(outcome(lambda: hsic(wrong_type, wrong_type, 1.0, 1.0)))
    # The trainer's counts are wrong on one rank: the others must not wait for ever.
    rows = torch.randn(3 if rank == 1 else 4, 2)
    outcomes.append(
        outcome(lambda: hsic(gather_features(rows, counts=[4, 4, 4]), rows, 1.0, 1.0))
        if rank == 1
        else outcome(lambda: hsic(*[gather_features(rows, counts=[4, 4, 4])] * 2, 1.0, 1.0))
    )
    return outcomes


def test_refusals_are_the_same_on_all_ranks():
    ranks = run_ranks(3, refusals)
    per_case = list(zip(*ranks, strict=True))
    for case in per_case[:12:2]:
        assert len(set(case)) == 1
        assert case[0][0] == "NonFiniteError"
        assert "x has" in case[0][1]
        assert "rank 2" in case[0][1]
    for case in per_case[1:12:2]:
        assert case == (("value", "True"),) * 3
    few, width, rows, shape, dtype, counts = per_case[12:]
    assert {kind for kind, _ in few} == {"ArgumentError"}
    assert "got 3" in few[0][1]
    for case, message in ((width, "3 × torch.float32"), (rows, "(4, 4, 5)"), (dtype, "float16")):
        assert len(set(case)) == 1
        assert case[0][0] == "ValueError"
        assert message in case[0][1]
    assert {kind for kind, _ in shape} == {"ValueError"}
    assert "rank 0" in shape[1][1]
    assert [kind for kind, _ in counts] == ["NonFiniteError", "ValueError", "NonFiniteError"]
    assert "rank 1 has 4 rows, but its tensor has 3" in counts[1][1]
