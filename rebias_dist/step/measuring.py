"""Measure the kernel radii before an epoch: medians of distances, or the feature width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rebias_dist.config.schema import Config
from rebias_dist.data.loader import TrainLoader
from rebias_dist.methods.radii import Radii
from rebias_dist.objectives import median_distance
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.waits import told
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.randomness import key

# The measuring pass is no update. This number keeps its dropout masks apart from the updates'.
_UPDATE = -1


def sampled_steps(seed: int, epoch: int, steps_per_epoch: int, fraction: float) -> list[int]:
    """Return the seeded ceil(fraction) of an epoch's steps on whose batches radii are measured."""
    count = math.ceil(fraction * steps_per_epoch)
    shuffled = sorted(range(steps_per_epoch), key=lambda s: key(seed, "radius", epoch, s))
    return sorted(shuffled[:count])


def measure_radii(
    config: Config,
    game: Minimax,
    loader: TrainLoader,
    consensus: Consensus,
    *,
    epoch: int,
    step: int,
) -> Radii:
    """Return the radii for an epoch; a collective that changes nothing in the networks.

    Medians are taken over all distinct pairs inside each sampled global batch of the coming
    epoch, with its augmentation.
    """
    assert game.f is not None
    radius_config = config.radius
    players: list[Player] = [game.f, *game.gs]
    wanted = {p.name: radius_config.f if p.name == "f" else radius_config.g for p in players}
    collected: dict[str, list[Tensor]] = {p.name: [] for p in players if wanted[p.name] == "median"}
    width: dict[str, int] = {}
    measuring = [p for p in players if isinstance(wanted[p.name], str)]
    if measuring:
        steps = sampled_steps(config.seed, epoch, loader.steps_per_epoch, radius_config.fraction)
        steps = steps if collected else steps[:1]
        device = game.f.precision.device
        told_of = told("kernel radii, global batches", len(steps), aloud=consensus.rank == 0)
        # A damaged sample on one rank ends the pass on all.
        with consensus.together(), told_of as work:
            for batches in loader.steps(epoch, steps):
                batches = [batch.to(device) for batch in batches]
                for player in measuring:
                    outputs = game.first_pass(player, batches, step, _UPDATE)
                    rows = torch.cat([output.features for output in outputs])
                    width[player.name] = rows.shape[1]
                    if player.name in collected:
                        collected[player.name].append(rows)
                work.done += 1

    def radius(player: Player) -> float:
        mode = wanted[player.name]
        scale = radius_config.scale_f if player.name == "f" else radius_config.scale_g
        if mode == "median":
            return scale * median_distance(collected[player.name], name=player.name)
        if mode == "dimension":
            return scale * math.sqrt(width[player.name])
        return scale * float(mode)

    return Radii(radius(game.f), tuple(radius(g) for g in game.gs))
