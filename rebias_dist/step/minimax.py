"""One step of the game: every g updates, then f, on the same global batch.

    g-update   min_g  terms(g) / N + coupled(g, sg[f])    n_g_update times
    f-update   min_f  terms(f) / N + coupled(f, sg[g])    with the updated g

(ReBias, eq. 5; ``sg`` stops gradients: an update never touches the other network.) The terms are
sums over samples and may be accumulated micro-batch by micro-batch. The coupled terms, such as
HSIC, are functions of the whole global batch and may not. There are two ways to their exact
gradients:

* One micro-batch a rank: its graph is kept from forward to backward, and f's one forward
  serves both updates, because f does not change in between.
* More: gradient caching. A first pass without gradients collects the features of all
  micro-batches; the coupled terms give the gradient of each feature; a second pass runs each
  micro-batch again and back-propagates ``terms / N + <features, cached gradient>``.

Randomness inside the networks is keyed by what is computed, so that both passes of an
update see the same masks, on whichever rank they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from rebias_dist.data.batch import MicroBatch
from rebias_dist.errors import NonFiniteError
from rebias_dist.methods.base import Method, Output, Term, wide
from rebias_dist.methods.radii import Radii
from rebias_dist.objectives import Features, gather_features
from rebias_dist.phases import phase
from rebias_dist.step.player import Player
from rebias_dist.step.randomness import keyed

Terms = Callable[[int, Output], dict[str, Tensor]]
"""Maps a local micro-batch's place and output to its per-sample objective terms."""


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

    def reduce(self, samples: int, passenger: Tensor | None = None) -> dict[str, float]:
        """Return all values, per sample of the global batch; a collective.

        Args:
            samples: N, of the global batch.
            passenger: float64, summed over the ranks in place by the same collective.
        """
        names = sorted(self.sums)
        found: dict[str, float] = {}
        if names:
            sums = torch.stack([self.sums[name] for name in names])
            if dist.is_initialized():
                passengers = [] if passenger is None else [passenger.flatten().to(sums.device)]
                both = torch.cat([sums, *passengers])
                with phase("communication"):
                    dist.all_reduce(both)
                sums = both[: len(names)]
                if passenger is not None:
                    passenger.copy_(both[len(names) :].view_as(passenger))
            found = dict(zip(names, (sums / samples).tolist(), strict=True))
        found |= {name: float(value) for name, value in self.values.items()}
        for network, parts in sorted(self.objectives.items()):
            found[f"{network}/loss"] = sum(weight * found[part] for weight, part in parts)
        return found


class Minimax:
    """The step of a method, for any number of ranks and micro-batches a rank.

    Args:
        method: the objectives.
        f: the target network, or None where the method has none.
        gs: the biased networks.
        normalise: maps uint8 images to what the networks take.
        global_batch: N, samples of a step.
        micro_batches: M, micro-batches of a step; micro-batch j belongs to rank j mod W.
        seed: keys the randomness inside the networks.
    """

    def __init__(
        self,
        method: Method,
        f: Player | None,
        gs: Sequence[Player],
        *,
        normalise: Callable[[Tensor], Tensor],
        global_batch: int,
        micro_batches: int,
        seed: int,
    ) -> None:
        self.method = method
        self.f = f
        self.gs = list(gs)
        self.normalise = normalise
        self.N = global_batch
        self.M = micro_batches
        self.seed = seed
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        b = global_batch // micro_batches
        self.counts = [
            len(range(rank, micro_batches, self.world_size)) * b for rank in range(self.world_size)
        ]
        self.one_micro_batch = micro_batches == self.world_size
        self._features: dict[str, Tensor] = {}
        """This rank's features in the current step, to name the source of a NaN."""

    # ---------------------------------------------------------------- passes

    def _forward(
        self, player: Player, batch: MicroBatch, step: int, update: int, *, gradient: bool
    ) -> Output:
        keys = self.seed, step, batch.index, player.name, update
        with phase("forward"), keyed(batch.images.device, *keys):
            return player.forward(self.normalise(batch.images), gradient=gradient)

    def first_pass(
        self, player: Player, batches: list[MicroBatch], step: int, update: int
    ) -> list[Output]:
        """Return the player's outputs without gradients; its buffers stay as they are."""
        return [self._forward(player, mb, step, update, gradient=False) for mb in batches]

    def _gather(self, features: Tensor) -> Features:
        return gather_features(features, counts=self.counts, async_op=True)

    def _coupled_pass(
        self, player: Player, batches: list[MicroBatch], step: int, update: int
    ) -> tuple[list[Output], Features]:
        """Return the player's outputs and its features on the global batch, gathered once.

        With one micro-batch a rank they carry the graph. With more, the local features are
        the leaf on which the gradient of the coupling term will be cached, in float32 at least.
        """
        outputs = [
            self._forward(player, mb, step, update, gradient=self.one_micro_batch) for mb in batches
        ]
        features = torch.cat([output.features for output in outputs])
        self._features[player.name] = features.detach()
        gathered = self._gather(features)
        if not self.one_micro_batch:
            gathered = replace(gathered, local=wide(features).requires_grad_())
        return outputs, gathered

    # ---------------------------------------------------------------- updates

    def _update(
        self,
        player: Player,
        batches: list[MicroBatch],
        step: int,
        update: int,
        terms: Terms,
        metrics: Metrics,
        *,
        first: list[Output] | None = None,
        coupling: Tensor | None = None,
        own: Features | None = None,
    ) -> None:
        """Update one network.

        Args:
            player: the network to update.
            batches: this rank's micro-batches.
            step: global step.
            update: counts the updates of this network within the step.
            terms: the part of the objective that is a sum over samples.
            metrics: receives the metrics of this update.
            first: outputs of an earlier pass of this update, or None.
            coupling: the weighted sum of the coupled terms, on ``own``, or None.
            own: the player's features on the global batch.
        """
        # DDP averages the ranks' gradients, while our losses are parts of one sum whose true
        # gradient is the sum over ranks. This factor undoes the average, here and nowhere else.
        scale = float(self.world_size)
        cached: list[Tensor] | None = None
        if coupling is not None and not self.one_micro_batch:
            assert own is not None
            with phase("backward"):
                (gradient,) = torch.autograd.grad(coupling, own.local)
            cached = list(gradient.chunk(len(batches)))

        for place, batch in enumerate(batches):
            with player.without_reduction(place < len(batches) - 1):
                if first is not None and self.one_micro_batch:
                    output = first[place]
                else:
                    output = self._forward(player, batch, step, update, gradient=True)
                with phase("objective"):
                    loss = torch.zeros((), dtype=torch.float64, device=batch.images.device)
                    for name, values in terms(place, output).items():
                        metrics.add(f"{player.name}/{name}", values)
                        loss = loss + values.sum() / self.N
                    if cached is not None:
                        loss = loss + (wide(output.features) * cached[place]).sum()
                    elif coupling is not None:
                        loss = loss + coupling
                    right = output.logits.detach().argmax(1) == batch.labels
                    metrics.add(f"{player.name}/accuracy", right)
                player.backward(scale * loss)
        try:
            with phase("optimizer"):
                metrics.values[f"{player.name}/grad_norm"] = player.take_step(self.M)
        except NonFiniteError as error:
            here = {f"{n}/features": rows for n, rows in self._features.items()} | metrics.sums
            error.here = [name for name, found in here.items() if not found.isfinite().all()]
            raise

    def step(self, batches: list[MicroBatch], step: int, radii: Radii | None) -> Metrics:
        """Take one step of the game on this rank's micro-batches of a global batch.

        Args:
            batches: this rank's micro-batches, in the order of their index.
            step: global step, counted through pretraining.
            radii: the kernel radii; None where the method has no coupled terms.
        """
        metrics = Metrics()
        self._features = {}
        f_first: list[Output] | None = None
        f_features: Features | None = None
        if self.f is not None and self.method.is_coupled:
            # f's features serve its own update and that of every g: f changes last.
            f_first, f_features = self._coupled_pass(self.f, batches, step, 0)

        if not self.method.facts.fixed_g:
            for index in range(len(self.gs)):
                for update in range(self.method.config.n_g_update):
                    # Only the last update is reported: sums over several would count twice.
                    last = update == self.method.config.n_g_update - 1
                    found = metrics if last else Metrics()
                    self._update_g(index, batches, step, update, f_features, radii, found)

        if self.f is not None:
            self._update_f(self.f, batches, step, f_first, f_features, radii, metrics)
        return metrics

    def _update_g(
        self,
        index: int,
        batches: list[MicroBatch],
        step: int,
        update: int,
        f_features: Features | None,
        radii: Radii | None,
        metrics: Metrics,
    ) -> None:
        g = self.gs[index]
        first, own, coupling = None, None, None
        objective: list[tuple[float, str]] = []
        if self.method.g_is_coupled:
            assert f_features is not None
            assert radii is not None
            first, own = self._coupled_pass(g, batches, step, update)
            with phase("objective"):
                found = self.method.g_coupled(index, own, f_features.detach(), radii)
            coupling, objective = _sum_up(g, found, metrics)

        def terms(place: int, output: Output) -> dict[str, Tensor]:
            return self.method.g_terms(output, batches[place].labels)

        self._update(
            g, batches, step, update, terms, metrics, first=first, coupling=coupling, own=own
        )
        metrics.objectives[g.name] = objective + _own_terms(g, metrics)

    def _update_f(
        self,
        f: Player,
        batches: list[MicroBatch],
        step: int,
        first: list[Output] | None,
        own: Features | None,
        radii: Radii | None,
        metrics: Metrics,
    ) -> None:
        method = self.method
        coupling: Tensor | None = None
        objective: list[tuple[float, str]] = []
        opponents: list[list[Output]] = []
        if method.f_is_coupled or method.f_needs_g:
            updates = 0 if method.facts.fixed_g else method.config.n_g_update
            opponents = [self.first_pass(g, batches, step, updates) for g in self.gs]
        if method.f_is_coupled:
            assert own is not None
            assert radii is not None
            others = []
            for g, outputs in zip(self.gs, opponents, strict=True):
                self._features[g.name] = torch.cat([output.features for output in outputs])
                others.append(self._gather(self._features[g.name]))
            with phase("objective"):
                found = method.f_coupled(own, others, radii)
            coupling, objective = _sum_up(f, found, metrics)

        def terms(place: int, output: Output) -> dict[str, Tensor]:
            gs = [outputs[place] for outputs in opponents]
            return method.f_terms(output, gs, batches[place].labels, f.heads_replica)

        self._update(f, batches, step, 0, terms, metrics, first=first, coupling=coupling, own=own)
        metrics.objectives["f"] = objective + _own_terms(f, metrics)

    def pretrain(
        self, batches: list[MicroBatch], step: int, *, train_f: bool, train_g: bool
    ) -> Metrics:
        """Update f, every g, or both on cross-entropy alone."""
        metrics = Metrics()

        def terms(place: int, output: Output) -> dict[str, Tensor]:
            return {
                "ce": cross_entropy(wide(output.logits), batches[place].labels, reduction="none")
            }

        players = [self.f] * (train_f and self.f is not None) + self.gs * train_g
        for player in players:
            assert player is not None
            self._update(player, batches, step, 0, terms, metrics)
            metrics.objectives[player.name] = _own_terms(player, metrics)
        return metrics


def _own_terms(player: Player, metrics: Metrics) -> list[tuple[float, str]]:
    own = (name for name in metrics.sums if name.startswith(f"{player.name}/"))
    return [(1.0, name) for name in own if not name.endswith("/accuracy")]


def _sum_up(
    player: Player, terms: list[Term], metrics: Metrics
) -> tuple[Tensor, list[tuple[float, str]]]:
    """Note the coupled terms of a player; return their weighted sum, and its weights by name."""
    metrics.values |= {f"{player.name}/{term.name}": term.value.detach() for term in terms}
    total = sum((term.weight * term.value for term in terms[1:]), terms[0].weight * terms[0].value)
    return total, [(term.weight, f"{player.name}/{term.name}") for term in terms]
