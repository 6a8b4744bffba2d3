"""The methods by name, with what can be said of each without building it.

This module imports no torch: the configuration and ``--help`` read it too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What is known of a method before it is built, and what it needs."""

    cls: str = ""
    """Its class, in the module of the method's name."""
    has_f: bool = True
    has_g: bool = True
    hsic: bool = False
    """HSIC is part of an objective, so kernel radii are measured."""
    fixed_g: bool = False
    """Every g is trained before the game starts, and is in evaluation mode afterwards."""
    bias_labels: bool = False
    """It needs the bias label of every training sample."""
    views: bool = False
    """It can use two augmented views of each sample."""


METHODS = {
    "vanilla": Facts("Vanilla", has_g=False),
    "biased": Facts("Biased", has_f=False),
    "rubi": Facts("RUBi"),
    "learned_mixin": Facts("LearnedMixin", fixed_g=True),
    "rebias": Facts("ReBias", hsic=True),
    "lff": Facts("LfF"),
    "jtt": Facts("JTT", has_g=False),
    "spectral_decoupling": Facts("SpectralDecoupling", has_g=False),
    "softcon": Facts("SoftCon", fixed_g=True, views=True),
    "flac": Facts("FLAC", fixed_g=True),
    "badd": Facts("BAdd", fixed_g=True),
    "bias_balance": Facts("BiasBalance", has_g=False, bias_labels=True),
    "group_dro": Facts("GroupDRO", has_g=False, bias_labels=True),
    "biascon": Facts("BiasCon", has_g=False, bias_labels=True, views=True),
    "fairkl": Facts("FairKL", has_g=False, bias_labels=True, views=True),
    "end": Facts("EnD", has_g=False, bias_labels=True),
}
"""By name, in the order of tables: the baselines first, then by what they need to know."""
