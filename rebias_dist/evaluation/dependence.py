"""The dependence of f's and g's features on each other, and whether their kernels can show it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rebias_dist.errors import ConfigError, DataError, NonFiniteError
from rebias_dist.methods.radii import Radii
from rebias_dist.objectives import LOCAL, hsic, median_distance

_FEWEST = 4  # HSIC is not defined for fewer samples
_KERNEL_SAMPLES = 512  # kernel entries are taken between the first so many samples
_QUANTILES = (0.05, 0.5, 0.95)


def dependence(features: Mapping[str, Tensor], radii: Radii | None) -> dict[str, Any]:
    """Return the dependence between the features of ``f`` and of each g, as plain JSON data.

    Args:
        features: ``[m, d]`` by network (also ``f_ema``), the same samples in the same order, on one
            device, where HSIC and the median distances are computed.
        radii: of the kernels; None: the median distances of these features.

    Returns:
        Lists with an entry for each g. It is None without f, with fewer than 4 samples, or if
        features have collapsed or are not finite:

        ``hsic``
            the unbiased estimate, which is zero on average for independent features;
        ``hsic_noise``
            its standard deviation over random pairings of f's features with g's, in
            leading order: sqrt(2 HSIC(f, f) HSIC(g, g) / m(m-3)). An ``hsic`` below twice that
            cannot be told from zero (Székely & Rizzo, JMVA 2013, for the distance
            covariance);
        ``cka``
            HSIC(f, g) / sqrt(HSIC(f, f) HSIC(g, g)): the dependence on a scale on which equal
            features have 1, so that networks can be compared (Kornblith et al., ICML 2019).

        ``kernel_quantiles``: by network, the 5 %, 50 % and 95 % quantiles of the kernel's entries
        between different samples, or None if unknown. A kernel whose entries are all near 0 or
        all near 1 is uninformative.
    """
    names = list(features)
    gs = [name for name in names if name.startswith("g")]
    found: dict[str, Any] = {"hsic": [], "hsic_noise": [], "cka": [], "kernel_quantiles": {}}
    sigmas = {name: _sigma(name, gs, features[name], radii) for name in names}
    for name in names:
        found["kernel_quantiles"][name] = _kernel_quantiles(features[name], sigmas[name])
    own = {name: _hsic(features, sigmas, name, name) for name in names} if "f" in names else {}
    for g in gs:
        value = _hsic(features, sigmas, "f", g) if own else None
        scale = _root(own.get("f"), own.get(g))
        cka = noise = None
        if value is not None and scale is not None and scale > 0:
            m = len(features[g])
            cka = value / scale
            noise = scale * math.sqrt(2 / (m * (m - 3)))
        found["hsic"].append(value)
        found["cka"].append(cka)
        found["hsic_noise"].append(noise)
    return found


def _root(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else math.sqrt(max(one * other, 0.0))


def _sigma(name: str, gs: list[str], rows: Tensor, radii: Radii | None) -> float | None:
    if radii is not None:
        return radii.g[gs.index(name)] if name in gs else radii.f
    if len(rows) < _FEWEST:
        return None
    try:
        return median_distance([rows], group=LOCAL, name=name)
    except (DataError, NonFiniteError):  # collapsed or overflowing features have no median
        return None


def _hsic(
    features: Mapping[str, Tensor], sigmas: Mapping[str, float | None], one: str, other: str
) -> float | None:
    sigma_one, sigma_other = sigmas[one], sigmas[other]
    if sigma_one is None or sigma_other is None or len(features[one]) < _FEWEST:
        return None
    try:
        with torch.no_grad():
            found = hsic(features[one], features[other], sigma_one, sigma_other, group=LOCAL)
        return float(found)
    except (ConfigError, NonFiniteError):
        return None


def _kernel_quantiles(rows: Tensor, sigma: float | None) -> list[float] | None:
    rows = rows[:_KERNEL_SAMPLES].double().cpu()
    if sigma is None or len(rows) < 2 or not rows.isfinite().all():
        return None
    entries = torch.exp(-torch.nn.functional.pdist(rows).square() / (2 * sigma**2))
    found: list[float] = entries.quantile(torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
    return found
