"""Plain cross-entropy: the baseline, which learns any shortcut that the data offer."""

from rebias_dist.methods.base import Method


class Vanilla(Method):
    """f alone; no g is built."""
