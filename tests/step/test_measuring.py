"""The kernel radii: exact medians of the coming epoch, measured without touching the networks."""

import copy

import numpy as np
import pytest
import torch

from rebias_dist import assemble, methods
from rebias_dist.config import plan
from rebias_dist.config.files import validate
from rebias_dist.data.splits import open_data
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.runs.networks import build_networks
from rebias_dist.step.measuring import measure_radii, sampled_steps
from rebias_dist.step.precision import Precision


def _game(values: dict):
    config = validate(values)
    data = open_data(config, assemble.data_root(config))
    precision = Precision(config.precision, torch.device("cpu"))
    method = methods.build(config.method)
    networks = build_networks(config, 10, precision)
    shape = assemble.sample_shape(config, data)
    players = assemble.build_players(config, method, networks, shape, 10, precision)
    normalise = assemble.build_normalise(data, precision)
    layout = plan.derive(config, 1, len(data.train))
    game = assemble.build_game(config, method, players, normalise, layout)
    loader = assemble.build_loader(config, data.train, Consensus(), precision.device)
    return config, networks, game, loader, normalise


def test_the_median_is_numpys_over_the_sampled_batches(small_run):
    settings = {"f": "median", "g": "median", "fraction": 0.4, "scale_g": 2.0}
    config, networks, game, loader, normalise = _game({**small_run, "radius": settings})
    before = copy.deepcopy({name: net.state_dict() for name, net in networks.items()})
    found = measure_radii(config, game, loader, Consensus(), epoch=1, step=9)

    steps = sampled_steps(config.seed, 1, loader.steps_per_epoch, 0.4)
    assert len(steps) == 4 == len(set(steps))
    for name, radius, scale in (("f", found.f, 1), ("g0", found.g[0], 2)):
        squared = []
        for batches in loader.steps(1, steps):
            with torch.no_grad():
                net = copy.deepcopy(networks[name])
                rows = torch.cat([net(normalise(b.images))[1] for b in batches]).numpy()
            i, j = np.triu_indices(len(rows), 1)
            squared.append(((rows[i] - rows[j]) ** 2).sum(1))
        expected = scale * np.sqrt(np.median(np.concatenate(squared)))
        print(f"{name}: {radius:.8f}, numpy {expected:.8f}")
        assert radius == pytest.approx(expected, rel=1e-6)  # distances are held in float32
    for name, net in networks.items():
        assert all(torch.equal(before[name][key], v) for key, v in net.state_dict().items())


def test_fixed_modes(small_run):
    settings = {"f": "dimension", "g": 3.0, "scale_f": 0.5}
    config, _, game, loader, _ = _game({**small_run, "radius": settings})
    found = measure_radii(config, game, loader, Consensus(), epoch=0, step=0)
    assert found.f == pytest.approx(0.5 * 32**0.5)
    assert found.g == (3.0,)


def test_other_epochs_and_seeds_sample_other_batches():
    chosen = {tuple(sampled_steps(seed, epoch, 40, 0.25)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(chosen) == 4
    assert sampled_steps(0, 0, 7, 0.25) == sampled_steps(0, 0, 7, 0.25)
    assert len(sampled_steps(0, 0, 7, 0.25)) == 2
