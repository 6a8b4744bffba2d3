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
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from rebias_dist.data.batch import MicroBatch
from rebias_dist.errors import ConfigError, NonFiniteError
from rebias_dist.methods.base import Batch, Method, Output, Term, one_line, per_sample, wide
from rebias_dist.methods.radii import Radii
from rebias_dist.methods.registry import METHODS
from rebias_dist.objectives import Features, gather_features
from rebias_dist.phases import phase
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.step.agreement import Agreement
from rebias_dist.step.known import known_of, whole_of
from rebias_dist.step.metrics import Metrics
from rebias_dist.step.observing import observe
from rebias_dist.step.player import Player
from rebias_dist.step.randomness import keyed
from rebias_dist.step.verdicts import Verdicts, explained

Terms = Callable[[int, Output], dict[str, Tensor]]
"""Maps a local micro-batch's place and output to its per-sample objective terms."""


@dataclass(frozen=True)
class _Turn:
    """What both networks' updates in a step share."""

    batches: list[MicroBatch]
    known: list[Batch]
    """What methods see of ``batches``."""
    whole: Batch
    step: int


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
        views: V, augmented views of each sample.
        first_step: the step at which pretraining ends and the game begins.
        consensus: the ranks, to agree on faults of a method or network of the user's.
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
        views: int = 1,
        first_step: int = 0,
        consensus: Consensus | None = None,
    ) -> None:
        self.method = method
        self._name = type(method).__name__
        self.f = f
        self.gs = list(gs)
        self.normalise = normalise
        self.N = global_batch
        self.M = micro_batches
        self.seed = seed
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.views = views
        b = global_batch // micro_batches
        self.counts = [
            len(range(rank, micro_batches, self.world_size)) * b for rank in range(self.world_size)
        ]
        self.one_micro_batch = micro_batches == self.world_size
        self.first_step = first_step
        self._features: dict[str, Tensor] = {}
        """This rank's features in the current step, to name the source of a NaN."""
        players = [player for player in (f, *gs) if player is not None]
        of_the_user = method.config.name not in METHODS or any(p.of_the_user for p in players)
        self._agreement = Agreement(consensus if of_the_user else None)
        self.verdicts = Verdicts(players[0].precision.device)
        """To be settled before the weights are saved or evaluated."""

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of all players for the coming steps."""
        for player in [*([self.f] if self.f else []), *self.gs]:
            player.set_learning_rate(rate)

    # ---------------------------------------------------------------- passes

    def _normalised(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """Normalise the images for all passes of a step, if there is one micro-batch a rank."""
        if not self.one_micro_batch:  # else the memory would grow with their number
            return batches
        with phase("forward"):
            return [replace(mb, images=self.normalise(mb.images)) for mb in batches]

    def _forward(
        self, player: Player, batch: MicroBatch, step: int, update: int, *, gradient: bool
    ) -> Output:
        keys = self.seed, step, batch.index, player.name, update
        with phase("forward"), keyed(batch.images.device, *keys):
            done = batch.images.is_floating_point()
            images = batch.images if done else self.normalise(batch.images)
            return player.forward(images, gradient=gradient)

    def first_pass(
        self, player: Player, batches: list[MicroBatch], step: int, update: int
    ) -> list[Output]:
        """Return the player's outputs without gradients; its buffers stay as they are."""
        return [self._forward(player, mb, step, update, gradient=False) for mb in batches]

    def _pass(
        self, player: Player, batches: list[MicroBatch], step: int, update: int
    ) -> list[Output]:
        """Return the player's outputs; with one micro-batch a rank they carry the graph."""
        gradient = self.one_micro_batch and not player.fixed
        with self._agreement.together():
            return [self._forward(player, mb, step, update, gradient=gradient) for mb in batches]

    def _own_features(self, player: Player, outputs: list[Output]) -> Features:
        """Return the player's features on the global batch, gathered once.

        With one micro-batch a rank they carry the graph. With more, the local features are
        the leaf on which the gradient of the coupling term will be cached, in float32 at least.
        """
        features = self._rows(outputs)
        self._features[player.name] = features.detach()
        gathered = gather_features(features, counts=self.counts, async_op=True)
        if not self.one_micro_batch:
            gathered = replace(gathered, local=wide(features).requires_grad_())
        return gathered

    def _rows(self, outputs: list[Output]) -> Tensor:
        """Return the features of this rank's samples, the views of a sample side by side."""
        return torch.cat([_side_by_side(output.features, self.views) for output in outputs])

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
        coupled: Callable[[], list[Term]] | None = None,
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
            coupled: returns the coupled terms, on ``own``; None: there are none.
            own: the player's features on the global batch.
        """
        # DDP averages the ranks' gradients, while our losses are parts of one sum whose true
        # gradient is the sum over ranks. This factor undoes the average, here and nowhere else.
        scale = float(self.world_size)
        objective: list[tuple[float, str]] = []
        with self._agreement.together(player.name) as names:
            coupling: Tensor | None = None
            if coupled is not None:
                where = f"{self._name}.{player.name[0]}_coupled()"
                with phase("objective"), one_line(where):
                    coupling, objective = metrics.note(player.name, coupled())
            coupled_part = self._coupled_part(coupling, own, batches)
            for place, batch in enumerate(batches):
                last = place == len(batches) - 1
                with player.without_reduction(not last):
                    if first is not None and self.one_micro_batch:
                        output = first[place]
                    else:
                        output = self._forward(player, batch, step, update, gradient=True)
                    with phase("objective"):
                        found = terms(place, output)
                        loss = coupled_part(place, output) + self._own_part(
                            player, found, output, metrics
                        )
                        names.update(found)
                        if not loss.requires_grad:
                            raise ConfigError(
                                f"method.name: in {self._name} the objective of {player.name} does "
                                "not depend on its output"
                            )
                        right = output.logits.detach().argmax(1) == batch.labels.repeat(self.views)
                        metrics.add(f"{player.name}/accuracy", right / self.views)
                    if not last:
                        player.backward(scale * loss)
        player.backward(scale * loss)  # here the ranks wait for each other
        metrics.complete(player.name, names)
        metrics.objectives[player.name] = objective + metrics.own_terms(player.name)
        try:
            with phase("optimizer"):
                norm = player.take_step(self.M)
        except NonFiniteError as error:
            raise explained(error, step, player.name, metrics, self._features) from None
        metrics.values[f"{player.name}/grad_norm"] = norm
        self.verdicts.add(player, norm, metrics)

    def _coupled_part(
        self, coupling: Tensor | None, own: Features | None, batches: list[MicroBatch]
    ) -> Callable[[int, Output], Tensor]:
        """Return what gives a micro-batch's part of the coupled terms, by its place and output."""
        if coupling is None:
            return lambda place, output: output.logits.new_zeros((), dtype=torch.float64)
        if self.one_micro_batch:
            return lambda place, output: coupling
        assert own is not None
        with phase("backward"):
            (gradient,) = torch.autograd.grad(coupling, own.local)
        cached = gradient.chunk(len(batches))
        return lambda place, output: (
            (_side_by_side(wide(output.features), self.views) * cached[place]).sum().double()
        )

    def _own_part(
        self, player: Player, found: dict[str, Tensor], output: Output, metrics: Metrics
    ) -> Tensor:
        """Return the sum of a micro-batch's own terms, divided by N; note them."""
        total = torch.zeros((), dtype=torch.float64, device=output.logits.device)
        where = f"{self._name}.{player.name[0]}_terms()"
        for name, values in per_sample(found, len(output.logits), where).items():
            values = values / self.views
            metrics.add(f"{player.name}/{name}", values)
            total = total + values.sum() / self.N
        return total

    def step(self, batches: list[MicroBatch], step: int, radii: Radii | None) -> Metrics:
        """Take one step of the game on this rank's micro-batches of a global batch.

        Args:
            batches: this rank's micro-batches, in the order of their index.
            step: global step, counted through pretraining.
            radii: the kernel radii; None where the method has no coupled terms.
        """
        batches = self._normalised(batches)
        metrics = Metrics()
        self._features = {}
        method = self.method
        now = step - self.first_step, self.views
        whole = whole_of(batches, self.counts if method.shares_samples else None, *now, radii)
        f_first: list[Output] | None = None
        f_features: Features | None = None
        g_first: list[list[Output]] = []
        if self.f is not None and (method.is_coupled or method.observes):
            # f's outputs serve its own update and that of every g: f changes last.
            f_first = self._pass(self.f, batches, step, 0)
            if method.is_coupled:
                f_features = self._own_features(self.f, f_first)
        weights: Tensor | None = None
        if method.observes:
            g_first = [self._pass(g, batches, step, 0) for g in self.gs]
            outputs = [*([] if f_first is None else [f_first]), *g_first]
            with phase("objective"):
                known = known_of(batches, None, *now)
                weights = observe(method, known, outputs, whole, self.counts, self._agreement)
        turn = _Turn(batches, known_of(batches, weights, *now), whole, step)

        if not method.facts.fixed_g:
            for index in range(len(self.gs)):
                for update in range(method.config.n_g_update):
                    # Only the last update is reported: sums over several would count twice.
                    last = update == method.config.n_g_update - 1
                    found = metrics if last else Metrics()
                    first = g_first[index] if g_first and update == 0 else None
                    self._update_g(index, turn, update, first, f_features, found)

        if self.f is not None:
            self._update_f(self.f, turn, f_first, f_features, metrics)
        self.verdicts.end_step(step, self._features)
        return metrics

    def _update_g(
        self,
        index: int,
        turn: _Turn,
        update: int,
        first: list[Output] | None,
        f_features: Features | None,
        metrics: Metrics,
    ) -> None:
        g, method = self.gs[index], self.method
        own: Features | None = None
        coupled: Callable[[], list[Term]] | None = None
        if method.g_is_coupled:
            assert f_features is not None
            first = first or self._pass(g, turn.batches, turn.step, update)
            own = self._own_features(g, first)
            coupled = partial(method.g_coupled, index, own, f_features.detach(), turn.whole)

        def terms(place: int, output: Output) -> dict[str, Tensor]:
            return method.g_terms(output, turn.known[place])

        batches, step = turn.batches, turn.step
        self._update(
            g, batches, step, update, terms, metrics, first=first, coupled=coupled, own=own
        )

    def _update_f(
        self,
        f: Player,
        turn: _Turn,
        first: list[Output] | None,
        own: Features | None,
        metrics: Metrics,
    ) -> None:
        method, batches, step = self.method, turn.batches, turn.step
        coupled: Callable[[], list[Term]] | None = None
        opponents: list[list[Output]] = []
        if method.f_is_coupled or method.f_needs_g:
            updates = 0 if method.facts.fixed_g else method.config.n_g_update
            with self._agreement.together():
                opponents = [self.first_pass(g, batches, step, updates) for g in self.gs]
        if method.f_is_coupled:
            assert own is not None
            others = []
            for g, outputs in zip(self.gs, opponents, strict=True):
                rows = self._features[g.name] = self._rows(outputs)
                others.append(gather_features(rows, counts=self.counts, async_op=True))
            coupled = partial(method.f_coupled, own, others, turn.whole)

        def terms(place: int, output: Output) -> dict[str, Tensor]:
            gs = [outputs[place] for outputs in opponents]
            return method.f_terms(output, gs, turn.known[place], f.heads)

        self._update(f, batches, step, 0, terms, metrics, first=first, coupled=coupled, own=own)

    def pretrain(
        self, batches: list[MicroBatch], step: int, *, train_f: bool, train_g: bool
    ) -> Metrics:
        """Update f, every g, or both on cross-entropy alone."""
        batches = self._normalised(batches)
        metrics = Metrics()

        def terms(place: int, output: Output) -> dict[str, Tensor]:
            labels = batches[place].labels.repeat(self.views)
            return {"ce": cross_entropy(wide(output.logits), labels, reduction="none")}

        players = [self.f] * (train_f and self.f is not None) + self.gs * train_g
        for player in players:
            assert player is not None
            self._update(player, batches, step, 0, terms, metrics)
        self.verdicts.end_step(step, self._features)
        return metrics


def _side_by_side(features: Tensor, views: int) -> Tensor:
    """Return ``[b, V·d]`` of ``[V·b, d]``, which has all first views before all second ones."""
    return features if views == 1 else torch.cat(features.chunk(views), dim=1)
