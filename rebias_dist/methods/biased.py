"""The biased network on its own: how far the bias alone carries."""

from rebias_dist.methods.base import Method


class Biased(Method):
    """g alone."""
