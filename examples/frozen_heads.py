"""RUBi and LearnedMixin with heads that stay as they are drawn, as in the public ReBias code.

PYTHONPATH=examples rebias-train --config biased_mnist/rubi --method.name frozen_heads:FrozenRUBi
"""

from torch import nn

from rebias_dist.methods.learned_mixin import LearnedMixin
from rebias_dist.methods.options import LearnedMixinOptions, MethodConfig
from rebias_dist.methods.registry import Facts
from rebias_dist.methods.rubi import RUBi


class FrozenRUBi(RUBi):
    """RUBi without training of the classifiers on g's features."""

    facts = Facts()
    Options = MethodConfig

    def heads(self, f_width: int, g_widths: list[int], classes: int) -> nn.Module:
        """Return RUBi's classifiers without gradients."""
        return super().heads(f_width, g_widths, classes).requires_grad_(False)


class FrozenLearnedMixin(LearnedMixin):
    """LearnedMixin without training of the gates on f's features."""

    facts = Facts(fixed_g=True)
    Options = LearnedMixinOptions

    def heads(self, f_width: int, g_widths: list[int], classes: int) -> nn.Module:
        """Return LearnedMixin's gates without gradients."""
        return super().heads(f_width, g_widths, classes).requires_grad_(False)
