"""g alone: the accuracy that the bias alone gives."""

from rebias_dist.methods.base import Method


class Biased(Method):
    """g alone."""
