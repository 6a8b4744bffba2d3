"""Plain cross-entropy: the baseline that takes whatever shortcut the data offer."""

from rebias_dist.methods.base import Method


class Vanilla(Method):
    """f alone; no g is built, so none costs anything."""
