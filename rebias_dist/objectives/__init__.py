"""Objectives of a global batch whose rows lie on several ranks: HSIC, or any function of them."""

from rebias_dist.objectives.coupled import Rows, coupled, coupled_by_rows
from rebias_dist.objectives.features import LOCAL, Features, Group, gather_features, gather_rows
from rebias_dist.objectives.median import CollapsedFeaturesError, median_distance
from rebias_dist.objectives.rbf_hsic import hsic

__all__ = [
    "LOCAL",
    "CollapsedFeaturesError",
    "Features",
    "Group",
    "Rows",
    "coupled",
    "coupled_by_rows",
    "gather_features",
    "gather_rows",
    "hsic",
    "median_distance",
]
