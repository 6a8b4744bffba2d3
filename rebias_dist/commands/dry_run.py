"""``rebias-train --dry-run``: print the plan of a run."""

from __future__ import annotations

import torch

from rebias_dist import assemble, methods
from rebias_dist.config import plan
from rebias_dist.config.schema import Config
from rebias_dist.data.sampling import draws_of
from rebias_dist.ranks.process_group import resolve_placement
from rebias_dist.runs.networks import build_networks
from rebias_dist.step.precision import Precision


def print_plan(config: Config) -> None:
    """Print the plan on rank 0; nothing is trained and no process group is joined.

    Args:
        config: a resolved configuration.

    Raises:
        RebiasError: the configuration, the data and the number of ranks do not match.
    """
    placement = resolve_placement()
    plan.check_world(config, placement.world_size)
    if placement.rank != 0:
        return
    data = assemble.open_data(config, assemble.data_root(config))
    layout = plan.derive(config, placement.world_size, len(data.train))
    # Refuses a sampling that the data do not allow.
    draws_of(config.data, data.train.labels, data.train.bias, data.classes)
    device = torch.device("cpu")
    networks = build_networks(config, len(data.classes), Precision(config.precision, device))
    facts = assemble.facts(config, data, networks, methods.build(config.method), device)
    print("\n".join(plan.describe(config, layout, facts)))
