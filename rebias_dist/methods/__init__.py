"""The games that f and g can play, one file a method.

A new method is a new file here, one entry in :mod:`rebias_dist.methods.registry`, and its options
in :mod:`rebias_dist.methods.options`.

The files that the registry does not name hold the formulas of further methods, checked against
their authors' numbers. They cannot be chosen yet.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rebias_dist.methods.options import MethodConfig
from rebias_dist.methods.registry import METHODS

if TYPE_CHECKING:
    from rebias_dist.methods.base import Method


def build(config: MethodConfig) -> Method:
    """Return the method that a configuration names; its module imports torch."""
    module = import_module(f"rebias_dist.methods.{config.name}")
    method: Method = getattr(module, METHODS[config.name].cls)(config)
    return method
