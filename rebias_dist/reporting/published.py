"""Published figures, from ``published.csv``: each row with its source."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import NamedTuple


class Published(NamedTuple):
    """One published accuracy."""

    dataset: str
    method: str
    """Its name here; empty for a method that is not offered."""
    label: str
    measure: str
    """Biased-MNIST: 'unbiased'. 9-class ImageNet: 'biased' (the validation images), 'unbiased'
    (their mean over cells of class and texture) or 'imagenet-a'."""
    rho: float | None
    """Training correlation of Biased-MNIST."""
    percent: float
    source: str


@cache
def published_figures() -> tuple[Published, ...]:
    """Return all published figures, in the order of their tables."""
    text = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            row["dataset"],
            row["method"],
            row["label"],
            row["measure"],
            float(row["rho"]) if row["rho"] else None,
            float(row["percent"]),
            row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def published_for(
    dataset: str, method: str, measure: str, rho: float | None = None
) -> tuple[Published, ...]:
    """Return what was published of a method: the paper's own figure first, then re-runs."""
    wanted = (dataset, method, measure, rho)
    return tuple(
        p for p in published_figures() if (p.dataset, p.method, p.measure, p.rho) == wanted
    )
