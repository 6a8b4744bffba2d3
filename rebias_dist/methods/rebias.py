"""ReBias (Bahng et al., ICML 2020, eq. 5): f becomes independent of a g that is biased."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rebias_dist.methods.base import Batch, Method, Term
from rebias_dist.objectives import Features, hsic


class ReBias(Method):
    """f minimises CE + λ_f ΣHSIC(f, g); each g minimises CE − λ_g HSIC(g, f)."""

    needs_whole_batch = False

    @property
    def f_is_coupled(self) -> bool:
        """Return whether λ_f is not 0."""
        return self.config.lambda_f != 0

    @property
    def g_is_coupled(self) -> bool:
        """Return whether λ_g is not 0."""
        return self.config.lambda_g != 0

    def f_coupled(self, f: Features, gs: Sequence[Features], batch: Batch) -> list[Term]:
        """Return λ_f HSIC(f, g) for each g."""
        assert batch.radii is not None
        weight, radii = self.config.lambda_f, batch.radii
        return [
            Term(f"hsic_g{index}", weight, self._hsic(f, g, radii.f, sigma))
            for index, (g, sigma) in enumerate(zip(gs, radii.g, strict=True))
        ]

    def g_coupled(self, index: int, g: Features, f: Features, batch: Batch) -> list[Term]:
        """Return −λ_g HSIC(g, f)."""
        assert batch.radii is not None
        sigma_g, sigma_f = batch.radii.g[index], batch.radii.f
        if self.config.swap_inner_bandwidth:
            sigma_g, sigma_f = sigma_f, sigma_g
        return [Term("hsic", -self.config.lambda_g, self._hsic(g, f, sigma_g, sigma_f))]

    def _hsic(self, x: Features, y: Features, sigma_x: float, sigma_y: float) -> Tensor:
        # check=False: a NaN reaches the gradients of all ranks, which then decide together.
        return hsic(x, y, sigma_x, sigma_y, estimator=self.config.hsic, check=False)
