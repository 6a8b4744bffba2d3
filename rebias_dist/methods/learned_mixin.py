"""LearnedMixin+H (Clark et al., EMNLP 2019, section 3.2.4): f learns what a fixed g misses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softplus

from rebias_dist.methods.base import Batch, Method, Output, wide
from rebias_dist.methods.options import LearnedMixinOptions


class _Gates(nn.Module):
    """One gate per g, the weight of its logits: softplus(w·f + β)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.gate = nn.ModuleList(nn.Linear(width, 1) for _ in range(count))

    def forward(self, f: Output, gs: list[Output]) -> list[Tensor]:
        return [softplus(gate(wide(f.features))) for gate in self.gate]


class LearnedMixin(Method):
    """f minimises λ_f Σ [CE(f + gate·g) + w·entropy(gate·g)]; g is fixed after pretraining."""

    config: LearnedMixinOptions
    f_needs_g = True

    def heads(self, f_width: int, g_widths: list[int], classes: int) -> nn.Module:
        """Return a gate on f's features for each g."""
        return _Gates(f_width, len(g_widths))

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the cross-entropy of the mixture and the entropy of the gated g."""
        assert heads is not None
        logits, weight = wide(f.logits), self.config.lambda_f
        mixed = torch.zeros_like(logits[:, 0])
        entropy = torch.zeros_like(mixed)
        for gate, g in zip(heads(f, gs), gs, strict=True):
            scaled = wide(gate) * wide(g.logits).detach()
            mixed = mixed + cross_entropy(logits + scaled, batch.labels, reduction="none")
            log_share = log_softmax(scaled, dim=1)
            entropy = entropy - (log_share.exp() * log_share).sum(1)
        return {
            "mixed_ce": weight * mixed,
            "entropy": weight * self.config.entropy_weight * entropy,
        }
