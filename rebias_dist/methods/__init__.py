"""The games that f and g can play; adding one means one new file and one entry here.

No torch is imported before a method is built: the configuration reads this table too.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rebias_dist.config.schema import MethodConfig
    from rebias_dist.methods.base import Method


@dataclass(frozen=True)
class Facts:
    """What can be said of a method without building it."""

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
"""By name, in the order of tables: the plain ones first, then what is measured against them."""


def build(config: MethodConfig) -> Method:
    """Return the method that a configuration names."""
    module = import_module(f"rebias_dist.methods.{config.name}")
    method: Method = getattr(module, METHODS[config.name].cls)(config)
    return method
