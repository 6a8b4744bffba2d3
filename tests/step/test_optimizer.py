"""The settings of the optimizer: they reach it, and a restored state does not bring back others."""

import copy
from functools import partial

import adamp
import pytest
import torch
from torch import nn

from rebias_dist.config.schema import NetworkConfig, OptimizerConfig
from rebias_dist.models import freeze_backbone
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


class _Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        features = self.layer(images).flatten(1)
        return features, features


def _convolution(layout: torch.memory_format, name: str) -> Player:
    return Player(
        "f",
        _Convolution().double().to(memory_format=layout),
        optimizer=OptimizerConfig(name=name, lr=0.1, weight_decay=0.1),
        precision=Precision("float64", torch.device("cpu")),
    )


def _step_on_images(player: Player, layout: torch.memory_format, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=generator)
    images = images.contiguous(memory_format=layout)
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
        player.load_training_state(state, name)
        (group,) = player.optimizer.param_groups
        for key, value in changed.items():
            assert list(group[key]) == value if key == "betas" else group[key] == value
        _step(player)
    _step(first)
    weights = [player.network.layer.weight for player in (first, resumed, other)]
    for one, another in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(weights[one], weights[another])


@pytest.mark.parametrize("name", ["adamp", "adam", "adamw", "sgd"])
def test_a_state_from_a_network_of_another_memory_format_goes_on_alike(name):
    contiguous, last = torch.contiguous_format, torch.channels_last
    first = _convolution(contiguous, name)
    _step_on_images(first, contiguous, 0)
    state = copy.deepcopy(first.state_dict())
    resumed = _convolution(last, name)
    resumed.network.load_state_dict(state["network"])
    resumed.load_training_state(state, name)
    for number in (1, 2):
        _step_on_images(first, contiguous, number)
        _step_on_images(resumed, last, number)
    for one, other in zip(first.parameters, resumed.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adamp", "adam", "adamw", "sgd"])
def test_a_state_saved_by_the_plain_optimizer_goes_on_alike(name):
    """As saved before the optimizers ran over all parameters at once."""
    plain = {"adamp": adamp.AdamP, "sgd": partial(torch.optim.SGD, momentum=0.9)}
    plain |= {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    first, resumed = (_convolution(torch.contiguous_format, name) for _ in range(2))
    first.optimizer = plain[name](first.parameters, lr=0.1, weight_decay=0.1)
    _step_on_images(first, torch.contiguous_format, 0)
    state = copy.deepcopy(first.state_dict())
    resumed.network.load_state_dict(state["network"])
    resumed.load_training_state(state, name)
    for number in (1, 2):
        for player in (first, resumed):
            _step_on_images(player, torch.contiguous_format, number)
    for one, other in zip(first.parameters, resumed.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_parameter_may_get_its_first_gradient_late():
    """As heads do that are not pretrained."""
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = make_optimizer(parameters, OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.0))
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    parameters[1].grad = torch.ones(2)
    optimizer.step()
    assert parameters[1].tolist() == pytest.approx([0.9, 0.9])


# --- the last layer apart, and the average of the weights --------------------------


class _Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.below, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, images):
        features = self.norm(self.below(images))
        return self.last(features), features


def _two(own: NetworkConfig, name: str = "sgd", **settings) -> Player:
    network = _Two()
    if own.freeze == "backbone":
        freeze_backbone(network, 2)
    optimizer = OptimizerConfig(**{"name": name, "lr": 0.1, "momentum": 0.0, **settings})
    precision = Precision("float32", torch.device("cpu"))
    return Player(
        "f", network, optimizer=optimizer, precision=precision, own=own, last=network.last
    )


def _state(player: Player) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in player.network.state_dict().items()}


@pytest.mark.parametrize("name", ["adamp", "adam", "adamw", "sgd"])
def test_the_last_layer_has_its_own_rate_which_follows_the_schedule(name):
    starts = _state(_two(NetworkConfig()))
    changes = {}
    for rate, own in ((0.02, NetworkConfig()), (0.1, NetworkConfig(head_lr=0.02))):
        player = _two(own, name, weight_decay=0.0)
        player.set_learning_rate(rate / 2)
        _step(player)
        changes[own.head_lr] = {k: x - starts[k] for k, x in _state(player).items()}
    same, apart = changes[None], changes[0.02]
    # The last layer moves as with a rate of 0.02 for all, and the other layer five times as far.
    torch.testing.assert_close(apart["last.weight"], same["last.weight"])
    torch.testing.assert_close(apart["below.weight"], 5 * same["below.weight"])


def test_the_last_layer_has_its_own_decay():
    groups = _two(NetworkConfig(head_weight_decay=0.5), weight_decay=0.1).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.5]
    assert [len(group["params"]) for group in groups] == [4, 2]
    frozen = _two(NetworkConfig(head_lr=0.5, freeze="backbone"))
    frozen.set_learning_rate(0.1)
    (group,) = frozen.optimizer.param_groups
    assert (group["lr"], len(group["params"])) == (0.5, 2)
    before = _state(frozen)
    _step(frozen)
    changed = [
        name for name, value in _state(frozen).items() if not torch.equal(value, before[name])
    ]
    assert changed == ["last.weight", "last.bias"]


def test_without_settings_of_its_own_there_is_one_group():
    assert len(_two(NetworkConfig()).optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("before", "after", "name", "reason"),
    [
        (NetworkConfig(), NetworkConfig(), "adam", "optimizer.name sgd"),
        (NetworkConfig(), NetworkConfig(), "adamp", "optimizer.name sgd"),
        (NetworkConfig(), NetworkConfig(head_lr=0.5), "sgd", "other parameters"),
        (NetworkConfig(), NetworkConfig(freeze="backbone"), "sgd", "other parameters"),
        (NetworkConfig(freeze="backbone"), NetworkConfig(), "sgd", "other parameters"),
    ],
)
def test_a_state_that_does_not_fit_is_left_and_told(before, after, name, reason):
    old, new, fresh = _two(before, momentum=0.9), _two(after, name), _two(after, name)
    _step(old)
    for player in (new, fresh):
        player.load_network(old.state_dict())
    (line,) = new.load_training_state(copy.deepcopy(old.state_dict()), "sgd")
    assert line.startswith("f: its optimizer begins with an empty state, because ")
    assert reason in line
    for player in (new, fresh):
        _step(player)
    assert all(torch.equal(value, _state(fresh)[key]) for key, value in _state(new).items())


def test_states_of_equal_numbers_but_other_shapes_do_not_fit():
    old, new = _two(NetworkConfig(), momentum=0.9), _two(NetworkConfig(), momentum=0.9)
    _step(old)
    state = copy.deepcopy(old.state_dict())
    # One row would be copied into all of them.
    buffers = state["optimizer"]["state"][0]
    buffers["momentum_buffer"] = buffers["momentum_buffer"][:1]
    assert len(new.load_training_state(state, "sgd")) == 1
    assert not new.optimizer.state


def test_a_scale_of_fp16_is_kept_and_may_be_missing():
    precisions = {name: Precision(name, torch.device("cpu")) for name in ("fp16", "float32")}
    half, full = (
        Player("f", _Two(), optimizer=OptimizerConfig(name="sgd"), precision=precision)
        for precision in precisions.values()
    )
    half.scaler.load_state_dict({**half.scaler.state_dict(), "scale": 8.0})
    for saved, player in ((half, full), (full, half), (half, half)):
        assert player.load_training_state(saved.state_dict(), "sgd") == []
    assert half.scaler.state_dict()["scale"] == 8.0


def test_the_average_is_of_the_weights_and_buffers_after_each_update():
    player = _two(NetworkConfig(ema=0.75))
    expected: dict[str, torch.Tensor] = {}
    for _ in range(4):
        _step(player)
        now = _state(player)
        for name, value in now.items():
            if value.is_floating_point():
                old = expected.get(name, value)
                expected[name] = old + 0.25 * (value - old)
    assert player.average is not None
    found = player.average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not torch.equal(found["last.weight"], _state(player)["last.weight"])
    again = _two(NetworkConfig(ema=0.75))
    again.load_network(player.state_dict())
    again.load_training_state(player.state_dict(), "sgd")
    _step(player)
    _step(again)
    assert again.average is not None
    for name, value in player.average.state_dict().items():
        assert torch.equal(value, again.average.state_dict()[name]), name


def test_buffers_other_than_batchnorms_are_copied_to_the_average():
    player = _two(NetworkConfig())
    player.network.register_buffer("table", torch.arange(300), persistent=False)
    player.network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    precision = Precision("float32", torch.device("cpu"))
    own = NetworkConfig(ema=0.9)
    player = Player("f", player.network, optimizer=OptimizerConfig(), precision=precision, own=own)
    for _ in range(5):
        _step(player)
    assert player.average is not None
    found = dict(player.average.module.named_buffers())
    for name in ("table", "mask", "norm.num_batches_tracked"):
        assert torch.equal(found[name], player.network.get_buffer(name)), name


def test_in_fp16_finite_gradients_make_a_step_though_their_norm_overflows():
    network = _Two()
    player = Player(
        "f",
        network,
        optimizer=OptimizerConfig(name="sgd", lr=1e-30, momentum=0.0),
        precision=Precision("fp16", torch.device("cpu")),
    )
    before = _state(player)
    player.scaler.scale(torch.zeros(()))  # makes the scale
    for parameter in player.parameters:
        parameter.grad = torch.full_like(parameter, 1e30 * player.scaler.get_scale())
    norm = player.take_step(1)
    assert norm.isinf()
    assert not torch.equal(network.last.weight, before["last.weight"])
    assert torch.equal(network.norm.running_mean, before["norm.running_mean"])
