"""The kernel radii of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Radii:
    """The kernel radii: of f's features and of those of each g."""

    f: float
    g: tuple[float, ...]


def radii_of(state: dict[str, Any]) -> Radii | None:
    """Return the kernel radii in a saved state."""
    radii = state["radii"]
    return None if radii is None else Radii(radii["f"], tuple(radii["g"]))
