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
    about: str = ""
    """What it does to f, in a few words, for model cards."""


METHODS = {
    "vanilla": Facts(
        "Vanilla", has_g=False, about="cross-entropy alone, without any treatment of bias"
    ),
    "biased": Facts("Biased", has_f=False),
    "rubi": Facts("RUBi", about="RUBi: f's logits were masked by those of a biased network g"),
    "learned_mixin": Facts(
        "LearnedMixin",
        fixed_g=True,
        about="LearnedMixin: f was trained in an ensemble with a fixed, biased network g",
    ),
    "rebias": Facts(
        "ReBias",
        hsic=True,
        about="ReBias (Bahng et al., ICML 2020): f was trained to be independent, by HSIC, of a "
        "deliberately biased network g that was trained against it",
    ),
    "lff": Facts(
        "LfF",
        about="LfF (Nam et al., NeurIPS 2020): f learned most from the images that a biased "
        "network g learned late",
    ),
    "jtt": Facts(
        "JTT",
        has_g=False,
        about="JTT (Liu et al., ICML 2021): f was trained twice, the second time with more weight "
        "on the images that it got wrong",
    ),
    "spectral_decoupling": Facts(
        "SpectralDecoupling",
        has_g=False,
        about="spectral decoupling (Pezeshki et al., NeurIPS 2021): large logits were penalised",
    ),
    "softcon": Facts(
        "SoftCon",
        fixed_g=True,
        views=True,
        about="SoftCon (Hong and Yang, NeurIPS 2021): images of a class attracted each other where "
        "a fixed, biased network g saw them apart",
    ),
    "flac": Facts(
        "FLAC",
        fixed_g=True,
        about="FLAC (Sarridis et al., 2023): f's similarities were kept from those of a fixed, "
        "biased network g",
    ),
    "badd": Facts(
        "BAdd",
        fixed_g=True,
        about="BAdd (Sarridis et al., 2024): the features of a fixed, biased network g were added "
        "to f's in training",
    ),
    "bias_balance": Facts(
        "BiasBalance",
        has_g=False,
        bias_labels=True,
        about="BiasBal (Hong and Yang, NeurIPS 2021): f's logits were balanced by the share of the "
        "classes given the bias label",
    ),
    "group_dro": Facts(
        "GroupDRO",
        has_g=False,
        bias_labels=True,
        about="group DRO (Sagawa et al., ICLR 2020): the groups of class and bias label with the "
        "largest loss had most weight",
    ),
    "biascon": Facts(
        "BiasCon",
        has_g=False,
        bias_labels=True,
        views=True,
        about="BiasCon (Hong and Yang, NeurIPS 2021): images of a class with different bias labels "
        "attracted each other",
    ),
    "fairkl": Facts(
        "FairKL",
        has_g=False,
        bias_labels=True,
        views=True,
        about="FairKL (Barbano et al., ICLR 2023): f's similarities were made alike with and "
        "without a common bias label",
    ),
    "end": Facts(
        "EnD",
        has_g=False,
        bias_labels=True,
        about="EnD (Tartaglione et al., CVPR 2021): images with a common bias label were kept "
        "apart, those of a class brought together",
    ),
}
"""By name, in the order of tables: the baselines first, then by what they need to know."""
