"""The games that f and g can play; adding one means one new file and one line here."""

from rebias_dist.config import MethodConfig
from rebias_dist.methods.base import Method, Output
from rebias_dist.methods.biased import Biased
from rebias_dist.methods.learned_mixin import LearnedMixin
from rebias_dist.methods.rebias import ReBias
from rebias_dist.methods.rubi import RUBi
from rebias_dist.methods.vanilla import Vanilla

_METHODS: dict[str, type[Method]] = {
    "rebias": ReBias,
    "vanilla": Vanilla,
    "biased": Biased,
    "rubi": RUBi,
    "learned_mixin": LearnedMixin,
}

__all__ = ["Method", "Output", "build"]


def build(config: MethodConfig) -> Method:
    """Return the method that a configuration names."""
    return _METHODS[config.name](config)
