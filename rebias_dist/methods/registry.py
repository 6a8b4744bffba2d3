"""The methods by name, with what can be said of each without building it.

This module imports no torch: the configuration and ``--help`` read it too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What is known of a method before it is built."""

    cls: str
    """Its class, in the module of the method's name."""
    has_f: bool = True
    has_g: bool = True
    couples: bool = False
    """HSIC is part of an objective."""
    fixed_g: bool = False
    """Every g trains in pretraining only, and is in evaluation mode afterwards."""


METHODS = {
    "vanilla": Facts("Vanilla", has_g=False),
    "biased": Facts("Biased", has_f=False),
    "rubi": Facts("RUBi"),
    "learned_mixin": Facts("LearnedMixin", fixed_g=True),
    "rebias": Facts("ReBias", couples=True),
}
"""By name, in the order of tables: the baselines first."""
