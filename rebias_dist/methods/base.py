"""The interface of a method: the objective of each network, in two parts.

An objective is a sum over samples (``f_terms``, ``g_terms``), which any accumulation may
cut into micro-batches, plus ``f_coupling`` or ``g_coupling`` times HSIC on the features of
the whole global batch, which nothing may cut. :mod:`rebias_dist.step.minimax` computes both.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.methods.options import MethodConfig


class Output(NamedTuple):
    """The output of a network for a micro-batch."""

    logits: Tensor
    """``[b, classes]``"""
    features: Tensor
    """``[b, d]``"""


class Method:
    """Cross-entropy for f and for every g; the methods differ from it.

    Args:
        config: the weights of the objectives.
    """

    f_needs_g: ClassVar[bool] = False
    """``f_terms`` uses the outputs of every g."""

    def __init__(self, config: MethodConfig) -> None:
        self.config = config
        self.facts = config.facts

    @property
    def f_coupling(self) -> float:
        """Return the weight of HSIC in f's objective."""
        return 0.0

    @property
    def g_coupling(self) -> float:
        """Return the weight of HSIC in the objective of each g (negative: g maximises it)."""
        return 0.0

    @property
    def uses_radius(self) -> bool:
        """Return whether training needs the kernel radii."""
        return self.f_coupling != 0 or self.g_coupling != 0

    def heads(self, f_width: int, g_widths: list[int], classes: int) -> nn.Module | None:
        """Return the trained part of f's objective besides f, called with (f, gs), or None."""
        return None

    def f_terms(
        self, f: Output, gs: list[Output], labels: Tensor, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the per-sample terms ``[b]`` of f's objective, by name, weights included."""
        return {"ce": cross_entropy(wide(f.logits), labels, reduction="none")}

    def g_terms(self, g: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the per-sample terms ``[b]`` of the objective of a g, by name."""
        if not self.config.update_g_cls:
            return {}
        return {"ce": cross_entropy(wide(g.logits), labels, reduction="none")}


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32: losses are never computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()
