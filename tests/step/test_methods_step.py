"""A step of each method is the step of its formula on the whole batch, in one graph.

The formulas themselves are compared with the authors' numbers in tests/methods. Networks without
BatchNorm see the whole batch at once here, and micro-batches in the step.
"""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from rebias_dist import methods, models
from rebias_dist.config.schema import OptimizerConfig
from rebias_dist.data.batch import MicroBatch
from rebias_dist.methods import bias_balance, end, fairkl, group_dro, jtt, lff
from rebias_dist.methods.base import TrainingSet
from rebias_dist.methods.biascon import biascon
from rebias_dist.methods.eps_supinfonce import eps_supinfonce
from rebias_dist.methods.flac import flac
from rebias_dist.methods.options import options_class
from rebias_dist.methods.registry import METHODS
from rebias_dist.methods.softcon import softcon
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision
from tests.support.whole_batch import of_whole_batch

N, M, CLASSES, SAMPLES, RATE = 24, 4, 4, 60, 0.3
OPTIONS = {
    "lff": {"q": 0.6, "smoothing": 0.4},
    "jtt": {"up_weight": 5},
    "spectral_decoupling": {"coefficient": 0.2, "anneal_step": 1},
    "softcon": {"ce_weight": 0.3},
    "flac": {"flac_weight": 3.0, "ce_weight": 0.7},
    "badd": {"added_weight": 0.8},
    "bias_balance": {},
    "group_dro": {"weight_step": 0.7, "adjustment": 1.5},
    "biascon": {"ce_weight": 0.3, "bias_balance": True},
    "fairkl": {"contrast_weight": 0.8, "regulariser_weight": 0.6, "epsilon": 0.2},
    "end": {"disentangle_weight": 0.9, "entangle_weight": 0.7},
}


def training_set() -> TrainingSet:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    bias = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    labels[:CLASSES] = bias[:CLASSES] = torch.arange(CLASSES)
    return TrainingSet(labels, bias, CLASSES, (3, 8, 8))


def network(seed: int):
    torch.manual_seed(seed)
    return models.build(
        "simple_convnet", num_classes=CLASSES, width=0.25, kernel_size=3, norm="none"
    ).double()


class Judge:
    def __init__(self, labels):
        self.wrong = torch.arange(len(labels)) % 4 == 1
        self.predicted = (labels + self.wrong) % CLASSES

    def predict(self, name):
        return self.predicted

    def restart(self, name):
        assert name == "f"


def losses_of(logits, labels):
    return cross_entropy(logits, labels, reduction="none")


def objectives(name, seen, training, out, prior_state):
    """The objectives of f and g on the whole batch, from the formulas."""
    o, (labels, bias, ids) = OPTIONS[name], seen
    logits, features, g_logits, g_features = out
    ce = losses_of(logits, labels)
    samples = {"labels": labels, "bias": bias}
    biases = int(training.bias.max()) + 1
    counts = bias_balance.count_pairs(training.labels, training.bias, CLASSES, biases)
    balanced = losses_of(
        bias_balance.balanced_logits(logits, bias, bias_balance.log_prior(counts)), labels
    )
    unit = normalize(features)
    if name == "lff":
        tables = [
            lff.update_table(table, ids, values, alpha=o["smoothing"])
            for table, values in zip(prior_state, (ce, losses_of(g_logits, labels)), strict=True)
        ]
        prior_state[:] = tables
        weights = lff.sample_weights(tables[1], tables[0], ids, training.labels, CLASSES)
        return (weights * ce).mean(), lff.gce(g_logits, labels, o["q"]).mean()
    if name == "group_dro":
        pairs = torch.stack([training.labels, training.bias], 1)
        _, groups, sizes = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
        if not prior_state:
            prior_state.append(torch.full((len(sizes),), 1 / len(sizes), dtype=torch.float64))
        found, _ = group_dro.group_losses(ce, groups[ids], len(sizes))
        constants = torch.full((len(sizes),), o["adjustment"], dtype=torch.float64)
        adjusted = group_dro.adjusted_losses(found, sizes.double(), constants)
        prior_state[0] = group_dro.update_weights(
            prior_state[0], adjusted, step_size=o["weight_step"]
        )
        terms = [
            q * ce[groups[ids] == group].mean()
            for group, q in enumerate(prior_state[0])
            if (groups[ids] == group).any()
        ]
        return sum(terms), None
    if name == "jtt":
        weights, total = jtt.sample_weights(Judge(training.labels).wrong, o["up_weight"])
        return (weights[ids] * ce).mean() * SAMPLES / total, None
    if name == "spectral_decoupling":
        weight = 1.0 if not prior_state else o["coefficient"]
        prior_state.append("a step")
        return weight * ce.mean() + o["coefficient"] * (logits**2).mean(), None
    if name == "softcon":
        contrast = of_whole_batch(softcon, unit, labels=labels, bias_features=g_features)
        return o["ce_weight"] * ce.mean() + contrast, None
    if name == "flac":
        found = flac(features, g_features, labels, normalised=True)
        return o["ce_weight"] * ce.mean() + o["flac_weight"] * found, None
    if name == "bias_balance":
        return balanced.mean(), None
    if name == "biascon":
        contrast = of_whole_batch(biascon, unit, **samples)
        return o["ce_weight"] * balanced.mean() + contrast, None
    if name == "end":
        apart, together = end.disentangle(unit, bias), end.entangle(unit, labels, bias)
        return (
            ce.mean() + o["disentangle_weight"] * apart + o["entangle_weight"] * together,
            None,
        )
    raise AssertionError(name)


def objective_of_f_with_its_classifier(name, seen, net, images, g_features):
    """The two methods that change what the classifier sees, with the classifier itself."""
    o, (labels, bias, _) = OPTIONS[name], seen
    _, features = net(images)
    if name == "badd":
        return cross_entropy(net.fc(features + o["added_weight"] * g_features), labels)
    unit = normalize(features)
    contrast = of_whole_batch(
        lambda own, all: eps_supinfonce(own, all, epsilon=o["epsilon"]), unit, labels=labels
    )
    regulariser = fairkl.fairkl(unit, labels, bias)
    return (
        o["contrast_weight"] ** 2 * contrast
        + o["regulariser_weight"] * regulariser
        + cross_entropy(net.fc(features.detach()), labels)
    )


def descend(net, loss) -> None:
    parameters = list(net.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter -= RATE * gradient


@pytest.mark.parametrize("micro_batches", [1, M])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_two_steps_are_those_of_the_formula(name, micro_batches):
    assert set(OPTIONS) == METHODS.keys() - {"vanilla", "biased", "rubi", "learned_mixin", "rebias"}
    training = training_set()
    method = methods.build(options_class(name)(**OPTIONS[name], name=name))
    nets = {"f": network(1)} | ({"g0": network(2)} if METHODS[name].has_g else {})
    theirs = copy.deepcopy(nets)
    optimizer = OptimizerConfig(name="sgd", lr=RATE, momentum=0.0, weight_decay=0.0)
    precision = Precision("float64", torch.device("cpu"))
    players = {
        key: Player(key, net, optimizer=optimizer, precision=precision) for key, net in nets.items()
    }
    method.prepare(training, nets)
    method.before_epoch(0, Judge(training.labels))
    game = Minimax(
        method,
        players["f"],
        [player for key, player in players.items() if key != "f"],
        normalise=lambda images: images.double() / 255 - 0.5,
        global_batch=N,
        micro_batches=micro_batches,
        seed=0,
        first_step=10,
    )
    if METHODS[name].fixed_g:
        players["g0"].fix()
    prior_state = [lff.empty_table(SAMPLES, torch.float64)] * 2 if name == "lff" else []
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, SAMPLES, (N,), generator=generator)
        pixels = torch.randint(0, 256, (N, 3, 8, 8), generator=generator, dtype=torch.uint8)
        seen = training.labels[ids], training.bias[ids], ids
        parts = [x.chunk(micro_batches) for x in (pixels, *seen)]
        batches = [MicroBatch(*part, index) for index, part in enumerate(zip(*parts, strict=True))]
        found = game.step(batches, 10 + step, None).reduce(N)

        images = pixels.double() / 255 - 0.5
        g = theirs["g0"](images) if "g0" in theirs else (None, None)
        if name in ("badd", "fairkl"):
            fixed = g[1] if g[1] is None else g[1].detach()
            loss = objective_of_f_with_its_classifier(name, seen, theirs["f"], images, fixed)
            of_g = None
        else:
            out = (*theirs["f"](images), *g)
            loss, of_g = objectives(name, seen, training, out, prior_state)
        assert found["f/loss"] == pytest.approx(float(loss), rel=1e-10)
        descend(theirs["f"], loss)
        if of_g is not None:
            assert found["g0/loss"] == pytest.approx(float(of_g), rel=1e-10)
            descend(theirs["g0"], of_g)
    for key, net in nets.items():
        for (part, x), y in zip(net.named_parameters(), theirs[key].parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12, msg=f"{key}.{part}")


@pytest.mark.parametrize("form", ["urw", "spw1", "spw2", "spw3"])
def test_spectral_decoupling_of_two_classes_is_that_of_the_table(form):
    """The means over each class are those of the whole batch, not of a micro-batch."""
    labels = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0])
    torch.manual_seed(0)
    net = models.build("simple_convnet", num_classes=2, width=0.25, norm="none").double()
    options = {"form": form, "ratio": 3.0, "coefficient": 0.2, "anneal_step": None}
    method = methods.build(options_class("spectral_decoupling")(**options))
    method.prepare(TrainingSet(labels, labels, 2, (3, 8, 8)), {"f": net})
    optimizer = OptimizerConfig(name="sgd", lr=RATE, momentum=0.0)
    precision = Precision("float64", torch.device("cpu"))
    f = Player("f", net, optimizer=optimizer, precision=precision)
    game = Minimax(
        method,
        f,
        [],
        normalise=lambda images: images.double() / 255,
        global_batch=8,
        micro_batches=4,
        seed=0,
    )
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    logits = net(pixels.double() / 255)[0].detach()
    parts = [x.chunk(4) for x in (pixels, labels, labels, torch.arange(8))]
    batches = [MicroBatch(*part, index) for index, part in enumerate(zip(*parts, strict=True))]
    found = game.step(batches, 0, None).reduce(8)["f/loss"]
    z, of_ce = logits[:, 1] - logits[:, 0], losses_of(logits, labels)
    one, two = labels == 1, labels == 0
    loss = of_ce[one].mean() + of_ce[two].mean() if form == "urw" else of_ce.mean()
    penalty = {
        "urw": (z**2).mean(),
        "spw1": torch.where(one, 3 * z, z).square().mean(),
        "spw2": torch.where(two, 3 * z, z).square().mean(),
        "spw3": (z[one] - 2.5).square().mean() + (z[two] - 0.44).square().mean(),
    }[form]
    assert found == pytest.approx(float(loss + 0.2 * penalty), rel=1e-10)


def test_a_contrastive_loss_of_each_rank_alone_is_another_loss():
    """A control: what the usual code computes on two ranks, the mean of the ranks' own losses."""
    generator = torch.Generator().manual_seed(3)
    x = normalize(torch.randn(N, 16, generator=generator, dtype=torch.float64))
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    bias = torch.randint(0, CLASSES, (N,), generator=generator)
    whole = of_whole_batch(biascon, x, labels=labels, bias=bias)
    alone = [
        of_whole_batch(biascon, *part[:1], labels=part[1], bias=part[2])
        for part in zip(x.chunk(2), labels.chunk(2), bias.chunk(2), strict=True)
    ]
    print(f"whole batch {whole:.3f}, mean of two ranks alone {sum(alone) / 2:.3f}")
    assert abs(sum(alone) / 2 - whole) > 0.1 * whole.abs()
