"""The settings of the optimizer: they reach it, and a restored state does not bring back others."""

import pytest
import torch
from torch import nn

from rebias_dist.config.schema import OptimizerConfig
from rebias_dist.step.player import Player, make_optimizer
from rebias_dist.step.precision import Precision


class _Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, images):
        return self.layer(images), images


def _player(**settings) -> Player:
    return Player(
        "f",
        _Network(),
        optimizer=OptimizerConfig(**settings),
        precision=Precision("float32", torch.device("cpu")),
    )


def _step(player: Player) -> None:
    images = torch.arange(12.0).view(4, 3)
    player.backward(player.forward(images, gradient=True).logits.square().sum())
    player.take_step(1)


@pytest.mark.parametrize("name", ["adamp", "adam", "adamw"])
def test_betas_and_eps_reach_the_optimizer(name):
    chosen = OptimizerConfig(name=name, betas=[0.5, 0.6], eps=1e-3)
    for group in make_optimizer([nn.Parameter(torch.ones(2))], chosen).param_groups:
        assert (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)


@pytest.mark.parametrize("name", ["adamp", "adam", "adamw", "sgd"])
def test_a_setting_that_was_changed_for_a_resumed_run_is_used(name):
    changed = {"momentum": 0.5} if name == "sgd" else {"betas": [0.5, 0.6], "eps": 1e-3}
    first = _player(name=name, weight_decay=0.0)
    _step(first)
    state = first.state_dict()
    resumed, other = (_player(name=name, weight_decay=w, **changed) for w in (0.1, 0.0))
    for player in (resumed, other):
        player.network.load_state_dict(state["network"])
        player.load_training_state(state)
        (group,) = player.optimizer.param_groups
        for key, value in changed.items():
            assert list(group[key]) == value if key == "betas" else group[key] == value
        _step(player)
    _step(first)
    weights = [player.network.layer.weight for player in (first, resumed, other)]
    for one, another in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(weights[one], weights[another])
