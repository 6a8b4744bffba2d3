"""Data that a method cannot use are one line; batches that lack something are finite."""

import dataclasses

import numpy as np
import pytest
import torch

from rebias_dist import methods
from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Batch, Output, TrainingSet
from rebias_dist.methods.options import options_class
from rebias_dist.methods.registry import METHODS
from rebias_dist.objectives import gather_features
from rebias_dist.runs.preparation import check_labels

N, WIDTH, CLASSES = 12, 5, 3
NEEDY = sorted(name for name, facts in METHODS.items() if facts.bias_labels)


def training_set(labels, bias) -> TrainingSet:
    return TrainingSet(torch.tensor(labels), torch.tensor(bias), CLASSES, (3, 8, 8))


@pytest.mark.parametrize("name", NEEDY)
def test_missing_bias_labels_are_one_line(name):
    config = validate({"method": {"name": name}})
    labels = np.zeros(4, np.int32)
    check_labels(config, labels, np.array([0, 0, 0, 1], np.int32), ["a", "b", "c"])
    with pytest.raises(ConfigError, match=f"{name} needs bias labels, but 1 of the 4"):
        check_labels(config, labels, np.array([0, 1, -1, 2], np.int32), ["a", "b", "c"])


@pytest.mark.parametrize("name", sorted(set(NEEDY) - {"group_dro"}))
def test_one_bias_in_each_class_is_one_line(name):
    config = validate({"method": {"name": name}})
    labels = np.array([0, 1, 1, 2], np.int32)
    with pytest.raises(ConfigError, match=f"{name} finds one bias label in each class"):
        check_labels(config, labels, labels, ["a", "b", "c"])


@pytest.mark.parametrize("name", ["vanilla", "rebias", "lff", "jtt", "spectral_decoupling"])
def test_others_do_without(name):
    config = validate({"method": {"name": name}})
    check_labels(config, np.zeros(4, np.int32), np.full(4, -1, np.int32), ["a"])


class Judge:
    def __init__(self, wrong):
        self.wrong = wrong

    def predict(self, name):
        return self.wrong.long()

    def restart(self, name):
        raise AssertionError("the error set was refused before")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(torch.zeros(6), "misclassifies no training sample"), (torch.ones(6), "misclassifies all")],
)
def test_an_error_set_that_is_empty_or_everything(wrong, message):
    method = methods.build(options_class("jtt")())
    method.prepare(training_set([0] * 6, [0] * 6), {})
    with pytest.raises(ConfigError, match=message):
        method.before_epoch(0, Judge(wrong))


def network() -> torch.nn.Module:
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(3 * 8 * 8, WIDTH)
            self.fc = torch.nn.Linear(WIDTH, CLASSES)

        def forward(self, images):
            features = self.body(images.flatten(1))
            return self.fc(features), features

    return Net().double()


BATCHES = {
    "one bias and one class": ([1] * N, [1] * N),
    "one bias": ([0, 1, 2] * 4, [2] * N),
    "one class": ([2] * N, [0, 1, 2] * 4),
    "a sample of its own class": ([0] * (N - 1) + [1], [0] * (N - 1) + [1]),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"biased", "rubi", "learned_mixin"}))
def test_batches_that_lack_something_have_finite_objectives_and_gradients(name, batch):
    torch.manual_seed(0)
    method = methods.build(options_class(name)(name=name))
    labels, bias = BATCHES[batch]
    # Every class and bias label occurs in the training set, after the samples of the batch.
    training = training_set([*labels, 0, 1, 2], [*bias, 2, 1, 0])
    nets = {"f": network()} | ({"g0": network()} if METHODS[name].has_g else {})
    method.prepare(training, nets)
    if name == "jtt":
        wrong = torch.arange(N + 3) % 2
        judge = Judge((training.labels + wrong) % CLASSES)
        judge.restart = lambda name: None
        method.before_epoch(0, judge)
    images = torch.randn(N, 3, 8, 8, dtype=torch.float64)
    seen = Batch(training.labels[:N], training.bias[:N], torch.arange(N))
    f = Output(*nets["f"](images))
    gs = [Output(*nets["g0"](images))] if "g0" in nets else []
    if method.observes:
        detached = [Output(*(x.detach() for x in out)) for out in (f, *gs)]
        values = method.values(detached[0], detached[1:], seen)
        seen = dataclasses.replace(seen, weights=method.observe(values, seen))
    total = sum(terms.mean() for terms in method.f_terms(f, gs, seen, None).values())
    if method.f_is_coupled and name != "rebias":
        own = gather_features(f.features)
        others = [gather_features(g.features.detach()) for g in gs]
        total = total + sum(t.weight * t.value for t in method.f_coupled(own, others, seen))
    assert total.isfinite()
    gradients = torch.autograd.grad(total, list(nets["f"].parameters()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
