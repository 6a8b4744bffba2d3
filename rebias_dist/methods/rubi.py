"""RUBi (Cadène et al., NeurIPS 2019): f's loss leaves out what g already knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.methods.base import Batch, Method, Output, wide


class _Classifiers(nn.Module):
    """One linear head c per g, on its features; no gradient reaches g."""

    def __init__(self, widths: list[int], classes: int) -> None:
        super().__init__()
        self.c = nn.ModuleList(nn.Linear(width, classes) for width in widths)

    def forward(self, f: Output, gs: list[Output]) -> list[Tensor]:
        return [c(wide(g.features).detach()) for c, g in zip(self.c, gs, strict=True)]


class RUBi(Method):
    """f minimises λ_f Σ [CE(f · sigmoid(c(g))) + CE(c(g))]; each g minimises CE."""

    f_needs_g = True

    def heads(self, f_width: int, g_widths: list[int], classes: int) -> nn.Module:
        """Return a classifier c for each g."""
        return _Classifiers(g_widths, classes)

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the cross-entropies of the masked logits and of the heads."""
        assert heads is not None
        logits, weight = wide(f.logits), self.config.lambda_f
        masked = torch.zeros_like(logits[:, 0])
        of_heads = torch.zeros_like(masked)
        for c in heads(f, gs):
            masked = masked + cross_entropy(
                logits * torch.sigmoid(wide(c)), batch.labels, reduction="none"
            )
            of_heads = of_heads + cross_entropy(wide(c), batch.labels, reduction="none")
        return {"masked_ce": weight * masked, "head_ce": weight * of_heads}
