"""Statistics of a global batch whose rows lie on several ranks: HSIC and the kernel radius."""

from rebias_dist.objectives.features import LOCAL, Features, Group, gather_features
from rebias_dist.objectives.median import CollapsedFeaturesError, median_distance
from rebias_dist.objectives.rbf_hsic import hsic

__all__ = [
    "LOCAL",
    "CollapsedFeaturesError",
    "Features",
    "Group",
    "gather_features",
    "hsic",
    "median_distance",
]
