"""The methods that train f, one file each: its formulas, and a subclass of ``Method``.

A new method is a new file here, one entry in :mod:`rebias_dist.methods.registry`, and its options
in :mod:`rebias_dist.methods.options`. The interface is in :mod:`rebias_dist.methods.base`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rebias_dist.errors import ConfigError
from rebias_dist.methods.options import MethodConfig, own_method
from rebias_dist.methods.registry import METHODS

if TYPE_CHECKING:
    from rebias_dist.methods.base import Method


def build(config: MethodConfig) -> Method:
    """Return the method that a configuration names; its module imports torch."""
    if config.name in METHODS:
        module = import_module(f"rebias_dist.methods.{config.name}")
        method: Method = getattr(module, METHODS[config.name].cls)(config)
    else:
        try:
            method = own_method(config.name)(config)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"method.name: {config.name} cannot be made ({reason})") from error
        if not hasattr(method, "f_coupled") or getattr(method, "config", None) is not config:
            raise ConfigError(
                f"method.name: {config.name} must be a subclass of rebias_dist.methods.base.Method "
                "whose __init__ calls super().__init__(config)"
            )
    return method
