"""ReBias (Bahng et al., ICML 2020, eq. 5): f becomes independent of a g that is biased."""

from rebias_dist.methods.base import Method


class ReBias(Method):
    """f minimises CE + λ_f ΣHSIC(f, g); each g minimises CE − λ_g HSIC(g, f)."""

    @property
    def f_coupling(self) -> float:
        """Return λ_f."""
        return self.config.lambda_f

    @property
    def g_coupling(self) -> float:
        """Return −λ_g."""
        return -self.config.lambda_g
