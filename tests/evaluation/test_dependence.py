"""The dependence of features: its noise against random pairings, its scale, and what has none."""

import math

import numpy as np
import pytest
import torch

from rebias_dist.evaluation.dependence import dependence
from rebias_dist.methods.radii import Radii


def features(n: int, dependent: bool) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    f = torch.randn(n, 6, generator=rng, dtype=torch.float64)
    g = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    return {"f": f, "g0": g + f[:, :3] if dependent else g}


@pytest.mark.parametrize("dependent", [False, True])
def test_the_noise_is_the_deviation_over_random_pairings(dependent):
    both = features(60, dependent)
    radii = Radii(2.0, (1.5,))
    found = dependence(both, radii)
    rng = np.random.default_rng(0)
    paired = [
        dependence({"f": both["f"], "g0": both["g0"][rng.permutation(60)]}, radii)["hsic"][0]
        for _ in range(400)
    ]
    spread = np.std(paired)
    print(f"noise {found['hsic_noise'][0]:.3e}, over pairings {spread:.3e}")
    assert found["hsic_noise"][0] == pytest.approx(spread, rel=0.15)
    assert abs(np.mean(paired)) < 4 * spread / math.sqrt(400)
    assert (found["hsic"][0] > 4 * spread) == dependent


def test_equal_features_are_wholly_dependent():
    same = features(50, False)["f"]
    found = dependence({"f": same, "g0": same.clone()}, None)
    assert found["cka"] == [pytest.approx(1)]
    assert found["kernel_quantiles"]["f"] == found["kernel_quantiles"]["g0"]
    # With the median as radius, the middle entry of the kernel is exp(-1/2).
    assert found["kernel_quantiles"]["f"][1] == pytest.approx(math.exp(-0.5), rel=1e-3)


def test_what_has_no_dependence_has_none():
    both = features(20, True)
    assert dependence({"f": both["f"]}, None)["hsic"] == []
    assert dependence({"g0": both["g0"], "g1": both["f"]}, None)["hsic"] == [None, None]
    few = dependence({name: rows[:3] for name, rows in both.items()}, None)
    collapsed = dependence({"f": both["f"], "g0": torch.zeros(20, 3)}, None)
    infinite = dependence({"f": both["f"], "g0": both["g0"] / 0}, None)
    for found in (few, collapsed, infinite):
        assert found["hsic"] == found["cka"] == found["hsic_noise"] == [None]
    assert infinite["kernel_quantiles"]["g0"] is None
