"""The interface of a method: the objective of each network, in two parts.

An objective is a sum over samples (``f_terms``, ``g_terms``), which any accumulation may cut into
micro-batches, plus coupled terms (``f_coupled``, ``g_coupled``): functions of the features of the
whole global batch, which nothing may cut. :mod:`rebias_dist.step.minimax` computes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.methods.options import MethodConfig
from rebias_dist.methods.radii import Radii
from rebias_dist.objectives import Features


class Output(NamedTuple):
    """The output of a network for a micro-batch."""

    logits: Tensor
    """``[b, classes]``"""
    features: Tensor
    """``[b, d]``"""


class Term(NamedTuple):
    """A coupled term of an objective."""

    name: str
    """The name of the value in the metrics of the network."""
    weight: float
    value: Tensor
    """0-d float64: of the whole global batch, the same on all ranks."""


class Method:
    """Plain cross-entropy for f and for every g. A method overrides parts of it.

    Args:
        config: the weights of the objectives.
    """

    f_needs_g: ClassVar[bool] = False
    """``f_terms`` uses the outputs of every g."""

    def __init__(self, config: MethodConfig) -> None:
        self.config = config
        self.facts = config.facts

    @property
    def f_is_coupled(self) -> bool:
        """Return whether f's objective has coupled terms."""
        return False

    @property
    def g_is_coupled(self) -> bool:
        """Return whether the objective of each g has coupled terms."""
        return False

    @property
    def is_coupled(self) -> bool:
        """Return whether any objective has coupled terms, so that kernel radii are needed."""
        return self.f_is_coupled or self.g_is_coupled

    def f_coupled(self, f: Features, gs: Sequence[Features], radii: Radii) -> list[Term]:
        """Return the coupled terms of f's objective; a collective.

        Args:
            f: f's features on the global batch, with their graph.
            gs: the features of each g, detached.
            radii: the kernel radii.
        """
        return []

    def g_coupled(self, index: int, g: Features, f: Features, radii: Radii) -> list[Term]:
        """Return the coupled terms of the objective of g number ``index``; a collective.

        Args:
            index: of the g.
            g: its features on the global batch, with their graph.
            f: f's features, detached.
            radii: the kernel radii.
        """
        return []

    def heads(self, f_width: int, g_widths: list[int], classes: int) -> nn.Module | None:
        """Return layers that train with f, called as ``heads(f, gs)``, or None."""
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
