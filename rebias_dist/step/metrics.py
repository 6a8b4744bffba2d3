"""The metrics of a step: sums over samples, and values of the whole global batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.methods.base import Term
from rebias_dist.phases import phase
from rebias_dist.ranks.device_wait import to_host


@dataclass
class Metrics:
    """The metrics of a step; they stay on the device until they are read."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums over this rank's samples."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """Values that are global already, alike on all ranks."""
    objectives: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """The loss of each network, as weights and names of the values that it adds up."""

    def add(self, name: str, samples: Tensor) -> None:
        """Add per-sample values to a sum."""
        total = samples.detach().sum(dtype=torch.float64)
        self.sums[name] = self.sums[name] + total if name in self.sums else total

    def complete(self, player: str, names: Iterable[str]) -> None:
        """Add zeros for names that only other ranks have, so that all ranks reduce the same sums.

        Args:
            player: whose terms they are.
            names: on any rank.
        """
        for missing in {f"{player}/{name}" for name in names} - self.sums.keys():
            self.sums[missing] = torch.zeros_like(self.sums[f"{player}/accuracy"])

    def reduce(self, samples: int, passenger: Tensor | None = None) -> dict[str, float]:
        """Return all values, per sample of the global batch; a collective.

        Args:
            samples: N, of the global batch.
            passenger: float64, summed over the ranks in place by the same collective.
        """
        names = sorted(self.sums)
        rows = [torch.stack([self.sums[name] for name in names])] if names else []
        if names and dist.is_initialized():
            if passenger is not None:
                rows.append(passenger.flatten().to(rows[0].device, non_blocking=True))
            rows = [torch.cat(rows)]
            with phase("communication"):
                dist.all_reduce(rows[0])
        if self.values:
            rows.append(torch.stack([value.double() for value in self.values.values()]))
        if not rows:
            return {}
        numbers = to_host(torch.cat(rows))  # one copy for everything
        end = len(numbers) - len(self.values)
        if end > len(names) and passenger is not None:
            passenger.copy_(numbers[len(names) : end].view_as(passenger))
        found = dict(zip(names, (numbers[: len(names)] / samples).tolist(), strict=True))
        found |= dict(zip(self.values, numbers[end:].tolist(), strict=True))
        for network, parts in sorted(self.objectives.items()):
            found[f"{network}/loss"] = sum(weight * found[part] for weight, part in parts)
        return found

    def not_finite(self, player: str) -> list[str]:
        """Return the coupled terms of a player that are not finite; alike on all ranks."""
        own = {n: x for n, x in self.values.items() if n.startswith(f"{player}/")}
        return [n for n, x in own.items() if not n.endswith("/grad_norm") and not x.isfinite()]

    def own_terms(self, player: str) -> list[tuple[float, str]]:
        """Return the per-sample terms of a player that were added, each with weight 1."""
        own = (name for name in self.sums if name.startswith(f"{player}/"))
        return [(1.0, name) for name in own if not name.endswith("/accuracy")]

    def note(self, player: str, terms: list[Term]) -> tuple[Tensor | None, list[tuple[float, str]]]:
        """Note a player's coupled terms; return their weighted sum, and the weights by name."""
        self.values |= {f"{player}/{term.name}": term.value.detach() for term in terms}
        total: Tensor | None = None
        for term in terms:
            weighted = term.weight * term.value
            total = weighted if total is None else total + weighted
        return total, [(term.weight, f"{player}/{term.name}") for term in terms]
