"""Group DRO (Sagawa et al., ICLR 2020): the worst group has most weight.

Checked against the authors' public code, kohpangwei/group_DRO. The paper's algorithm 1 draws one
group at a time and updates its weight only; the code updates all groups by each batch, and so
does this one. A step calls :func:`group_losses`, :func:`adjusted_losses`, :func:`update_weights`
and :func:`sample_weights`, in this order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebias_dist.methods.base import Batch, Method, Output, TrainingSet, cross_entropies
from rebias_dist.methods.options import GroupDROOptions


class GroupDRO(Method):
    """f minimises the CE of the groups by their weights, which grow with a group's loss.

    A group is a class with a bias label of which the training set has at least one sample.
    """

    config: GroupDROOptions
    observes = True

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Find the groups and give them equal weights."""
        pairs = torch.stack([training.labels, training.bias], dim=1)
        found, self.groups, sizes = torch.unique(
            pairs, dim=0, return_inverse=True, return_counts=True
        )
        self.sizes = sizes.double()
        self.q = torch.full_like(self.sizes, 1 / len(found))

    def state(self) -> dict[str, Tensor]:
        """Return q, the weights of the groups."""
        return {"q": self.q}

    def values(self, f: Output | None, gs: list[Output], batch: Batch) -> dict[str, Tensor]:
        """Return f's CE."""
        assert f is not None
        return {"ce": cross_entropies(f, batch)}

    def observe(self, values: dict[str, Tensor], batch: Batch) -> Tensor:
        """Update the weights of the groups; return the weights of the samples, with mean 1 or less.

        A group that the batch lacks keeps its part of the weight.
        """
        groups = self.groups[batch.samples]
        losses, counts = group_losses(values["ce"], groups, len(self.q))
        constants = torch.full_like(self.sizes, self.config.adjustment)
        adjusted = adjusted_losses(
            losses, self.sizes, constants, normalised=self.config.normalise_losses
        )
        self.q = update_weights(self.q, adjusted, step_size=self.config.weight_step)
        # The step divides the terms by N.
        return sample_weights(self.q, groups, counts) * len(groups)

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the weighted CE."""
        assert batch.weights is not None
        return {"weighted_ce": batch.weights * cross_entropies(f, batch)}


def group_losses(losses: Tensor, groups: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each group in the whole batch, 0 if it is absent, and its samples.

    Args:
        losses: ``(N,)``; no gradient is kept.
        groups: ``(N,)`` int64, from 0 to ``number`` - 1.
        number: G, of groups.

    Returns:
        ``(G,)`` losses and ``(G,)`` counts, of the dtype of ``losses``.
    """
    members = (groups == torch.arange(number, device=groups.device)[:, None]).to(losses.dtype)
    counts = members.sum(1)
    return (members * losses.detach()).sum(1) / counts.clamp(min=1), counts


def adjusted_losses(
    losses: Tensor, sizes: Tensor, constants: Tensor, *, normalised: bool = False
) -> Tensor:
    """Return what decides the weights of the groups: ``l_g + C_g / sqrt(n_g)``.

    The adjustment (equation 5) is used only if all C are positive, as in the authors' code: one
    zero switches all of them off. Absent groups, whose loss is 0, are adjusted too.

    Args:
        losses: ``(G,)``, of :func:`group_losses`.
        sizes: ``(G,)``, samples of each group in the training set.
        constants: ``(G,)``, C.
        normalised: divide by the sum over the groups.
    """
    adjustment = constants / sizes.sqrt()
    adjusted = losses + torch.where((constants > 0).all(), adjustment, 0).to(losses.dtype)
    return adjusted / adjusted.sum().clamp(min=1e-30) if normalised else adjusted


def update_weights(weights: Tensor, adjusted: Tensor, *, step_size: float = 0.01) -> Tensor:
    """Return the new weights of the groups, ``q_g · exp(η a_g)`` over their sum.

    Args:
        weights: ``(G,)``, q; uniform at the start of training. It lives on through the epochs.
        adjusted: ``(G,)``, of :func:`adjusted_losses`.
        step_size: η.
    """
    grown = weights * torch.exp(step_size * adjusted)
    return grown / grown.sum()


def sample_weights(weights: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """Return the weight of each sample of the batch, ``(N,)``: ``q_g`` over its group's samples.

    The objective is ``Σ_i weight_i · CE_i = Σ_g q_g l_g``, with the weights as constants. The
    value that the authors' code returns has ``Σ_g q_g C_g / sqrt(n_g)`` more, since it adds the
    adjustment in place; its gradient is this one.

    Args:
        weights: ``(G,)``, q after the update.
        groups: ``(N,)`` int64
        counts: ``(G,)``, samples of each group in the whole batch.
    """
    return (weights / counts.clamp(min=1))[groups]
