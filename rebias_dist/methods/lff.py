"""LfF (Nam et al., NeurIPS 2020): what a biased network learns late has more weight.

Checked against the authors' public code, alinlab/LfF. A step computes the cross-entropies (CE) of
both networks on the batch, writes them into a table for each network, and weighs the samples by
the tables: loss = mean GCE of the biased network + mean of weight · CE of the other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Batch, Method, Output, TrainingSet, cross_entropies, wide
from rebias_dist.methods.options import LfFOptions


class LfF(Method):
    """f minimises the CE weighted by what g learns faster; g minimises the GCE."""

    config: LfFOptions
    observes = True

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Make the tables, in float64."""
        if len(networks) != 2:
            raise ConfigError(f"g: lff has one biased network, not {len(networks) - 1}")
        self.training = training
        self.tables = {
            name: empty_table(len(training.labels), torch.float64, training.labels.device)
            for name in networks
        }

    def state(self) -> dict[str, Tensor]:
        """Return both tables."""
        return {
            f"{name}_{part}": values
            for name, table in self.tables.items()
            for part, values in table._asdict().items()
        }

    def values(self, f: Output | None, gs: list[Output], batch: Batch) -> dict[str, Tensor]:
        """Return the CE of both networks."""
        assert f is not None
        return {name: cross_entropies(output, batch) for name, output in (("f", f), ("g0", gs[0]))}

    def observe(self, values: dict[str, Tensor], batch: Batch) -> Tensor:
        """Write the CE into the tables; return the samples' weights by them."""
        for name, losses in values.items():
            self.tables[name] = update_table(
                self.tables[name], batch.samples, losses, alpha=self.config.smoothing
            )
        return sample_weights(
            self.tables["g0"],
            self.tables["f"],
            batch.samples,
            self.training.labels,
            self.training.classes,
        )

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the weighted CE."""
        assert batch.weights is not None
        return {"weighted_ce": batch.weights * cross_entropies(f, batch)}

    def g_terms(self, g: Output, batch: Batch) -> dict[str, Tensor]:
        """Return the GCE."""
        return {"gce": gce(wide(g.logits), batch.labels, self.config.q)}


class Table(NamedTuple):
    """The smoothed CE of one network for each training sample."""

    losses: Tensor
    """``(samples,)``; 0 where a sample has not been seen."""
    seen: Tensor
    """``(samples,)`` bool"""


def gce(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """Return the generalised cross-entropy of each sample, ``(N,)``.

    ``q · p_y^q · CE`` with the factor before CE as a constant. Its gradient is q times that of
    ``(1 - p_y^q) / q`` (Zhang and Sabuncu, NeurIPS 2018); its value is not that.

    Args:
        logits: ``(N, classes)``
        labels: ``(N,)`` int64
        q: 0 to 1.
    """
    losses = cross_entropy(logits, labels, reduction="none")
    return q * torch.exp(-q * losses.detach()) * losses


def empty_table(
    samples: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Table:
    """Return the table before the first step."""
    return Table(
        torch.zeros(samples, dtype=dtype, device=device),
        torch.zeros(samples, dtype=torch.bool, device=device),
    )


def update_table(table: Table, ids: Tensor, losses: Tensor, *, alpha: float = 0.7) -> Table:
    """Return the table after a step; the argument stays as it is.

    The first visit of a sample stores its CE, later ones ``alpha · old + (1 - alpha) · new``.

    If the batch has a sample more than once, the mean of its values is the new one, and it counts
    as one visit. (In the authors' code the last of them wins, which depends on the order.)

    Args:
        table: before the step.
        ids: ``(N,)`` int64, places in the table.
        losses: ``(N,)``, CE before the parameters are updated; no gradient is kept.
        alpha: weight of the old value.
    """
    losses = losses.detach().to(table.losses.dtype)
    # Not bincount, for which the host waits to learn the largest id.
    visits = torch.zeros_like(table.losses, dtype=torch.int64)
    visits = visits.index_add(0, ids, torch.ones_like(ids))
    new = torch.zeros_like(table.losses).index_add(0, ids, losses) / visits.clamp(min=1)
    smoothed = torch.where(table.seen, alpha * table.losses + (1 - alpha) * new, new)
    visited = visits > 0
    return Table(torch.where(visited, smoothed, table.losses), table.seen | visited)


def class_maxima(table: Table, labels: Tensor, classes: int) -> Tensor:
    """Return the largest value of each class in the whole table as it is now, ``(classes,)``.

    Samples that have not been seen count as 0, and so does a class without training samples. A
    maximum can go down.

    Args:
        table: after the update of the step.
        labels: ``(samples,)`` int64, of the training set.
        classes: number of classes.
    """
    zeros = table.losses.new_zeros(classes)
    return zeros.scatter_reduce(0, labels, table.losses, "amax")


def sample_weights(
    biased: Table, debiased: Table, ids: Tensor, labels: Tensor, classes: int
) -> Tensor:
    """Return the weight of each sample of the batch, ``(N,)``: ``B / (B + D + 1e-8)``.

    B and D are the values in the two tables, each divided by the maximum of the sample's class.
    If that is 0, so is the quotient (in the authors' code NaN).

    Args:
        biased: after the update of the step.
        debiased: after the update of the step.
        ids: ``(N,)`` int64, places in the tables.
        labels: ``(samples,)`` int64, of the training set.
        classes: number of classes.
    """

    def relative(table: Table) -> Tensor:
        largest = class_maxima(table, labels, classes)[labels[ids]]
        return table.losses[ids] / torch.where(largest > 0, largest, 1)

    b, d = relative(biased), relative(debiased)
    return b / (b + d + 1e-8)
