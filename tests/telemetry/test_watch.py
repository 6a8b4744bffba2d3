"""Known failures are told when they show, once, and not when they do not."""

import copy

import pytest

from rebias_dist.config.files import validate
from rebias_dist.telemetry.watch import CLIPPED_STEPS, Watch

CONFIG = {"optimizer": {"clip_norm": 1.0}}


def network(accuracy: float, aligned: float | None, conflicting: float | None) -> dict:
    samples = (60, 20) if aligned is not None else (0, 0)
    both = {"aligned": aligned, "conflicting": conflicting}
    counts = dict(zip(("aligned_samples", "conflicting_samples"), samples, strict=True))
    return {"accuracy": accuracy, **both, **counts}


SOUND = {
    "samples": 400,
    "hsic": [0.01],
    "hsic_noise": [0.001],
    "kernel_quantiles": {"f": [0.1, 0.5, 0.9], "g0": [0.2, 0.5, 0.995]},
    "networks": {"f": network(0.8, 0.9, 0.5), "g0": network(0.7, 0.95, 0.1)},
}


class Told:
    def __init__(self, **config):
        self.all: list[tuple[str, int]] = []
        self.texts: list[str] = []
        self.watch = Watch(validate({**CONFIG, **config}), 10, self.hear)

    def hear(self, kind, step, text):
        assert "\n" not in text
        self.all.append((kind, step))
        self.texts.append(text)

    def evaluated(self, step=1, **changes):
        figures = copy.deepcopy(SOUND)
        for path, value in changes.items():
            at, *rest = path.split("__")
            if rest:
                figures[at][rest[0]] = value
            else:
                figures[at] = value
        self.watch.evaluated(step, {"selection": figures})
        return [kind for kind, _ in self.all]


def test_a_sound_run_is_left_alone():
    told = Told()
    for step in range(200):
        norms = {"f/grad_norm": 5.0 * (step % 9 > 0), "g0/grad_norm": 0.5}
        told.watch.step(step, {**norms, "f/sigma": 1.0, "g0/sigma": 2.0 / (1 + step / 50)})
    assert told.evaluated() == []


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"kernel_quantiles__f": [0.0, 1e-9, 0.009], "hsic": [0.0019]}, "kernel_f"),
        ({"kernel_quantiles__g0": [0.991, 0.999, 1.0], "hsic": [0.0019]}, "kernel_g0"),
        ({"kernel_quantiles__g0": [1.0, 1.0, 1.0], "hsic_noise": [None]}, "kernel_g0"),
        ({"hsic": [0.0019]}, "hsic_g0"),
        ({"hsic": [-0.1]}, "hsic_g0"),
        ({"networks__f": network(0.12, 0.12, 0.1)}, "chance_f"),
        ({"networks__g0": network(0.1, 0.1, 0.1)}, "chance_g0"),
        ({"networks__g0": network(0.8, 0.85, 0.76)}, "bias_g0"),
        ({"networks__g0": network(0.8, None, None)}, "bias_g0"),
    ],
)
def test_each_failure_is_told_once_until_it_was_gone(changes, kind):
    told = Told()
    assert told.evaluated(1, **changes) == [kind]
    assert told.evaluated(2, **changes) == [kind]
    assert told.evaluated(3) == [kind]
    assert told.evaluated(4, **changes) == [kind, kind]
    assert told.all == [(kind, 1), (kind, 4)]


def test_a_kernel_whose_hsic_stands_out_sees_something():
    """As in the demo: classes lie far apart, and entries within a class are few but not small."""
    told = Told()
    assert told.evaluated(kernel_quantiles__f=[0.0, 4e-15, 0.009]) == []
    assert told.evaluated(kernel_quantiles__g0=[0.991, 0.999, 1.0]) == []


@pytest.mark.parametrize(
    ("classes", "samples", "accuracy", "at_chance"),
    [
        # P(26 or more of 40) is 0.040 at chance, and P(25 or more) is 0.077.
        (2, 40, 0.65, False),
        (2, 40, 0.5, False),  # 40 samples do not exclude 0.63
        (2, 400, 0.5, True),
        (2, 400, 0.52, True),
        (2, 400, 0.545, False),
        (10, 1000, 0.1, True),
        (10, 1000, 0.0, True),
        (10, 1000, 0.115, True),  # P(115 or more) is 0.064
        (10, 1000, 0.117, False),  # P(117 or more) is 0.042
        (10, 20, 0.1, False),
        (1000, 50_000, 0.001, True),
        (1000, 50_000, 0.01, False),
    ],
)
def test_at_chance_is_said_of_samples_that_show_it(classes, samples, accuracy, at_chance):
    texts: list[str] = []
    watch = Watch(validate(CONFIG), classes, lambda kind, step, text: texts.append(text))
    f = network(accuracy, None, None)
    networks = {"networks": {"f": f}, "kernel_quantiles": {}, "hsic": [], "hsic_noise": []}
    watch.evaluated(1, {"selection": {"samples": samples, **networks}})
    assert bool(texts) == at_chance
    for text in texts:
        assert f"on {samples:,} samples" in text


def test_clipping_in_every_step():
    told = Told()
    for step in range(3 * CLIPPED_STEPS):
        free = step == CLIPPED_STEPS - 2
        told.watch.step(step, {"f/grad_norm": 0.5 if free else 5.0, "g0/grad_norm": 0.5})
    assert told.all == [("clipping_f", 2 * CLIPPED_STEPS - 2)]
    assert "clip_norm is 1" in told.texts[0]
    unlimited = Told(optimizer={})
    for step in range(3 * CLIPPED_STEPS):
        unlimited.watch.step(step, {"f/grad_norm": 5.0})
    assert unlimited.all == []


def test_a_radius_that_collapses():
    told = Told()
    for step, sigma in enumerate([3.0, 1.0, 0.1, 0.02, 0.01]):
        told.watch.step(step, {"f/sigma": sigma, "g0/sigma": 1.0})
    assert told.all == [("radius_f", 3)]


def test_a_network_that_knows_the_bias_alone_is_not_at_chance():
    """One in ten images has its class's colour: who sees colours alone is right on these."""
    counts = {"aligned_samples": 100, "conflicting_samples": 900}
    unbiased = {"samples": 1000}
    colours = {**network(0.1, 1.0, 0.0), **counts}
    networks = {"f": network(0.8, 0.9, 0.79), "g0": colours}
    told = Told(data={"selection": "none"})
    told.watch.evaluated(1, {"unbiased": {**SOUND, **unbiased, "networks": networks}})
    assert told.all == []
    # One that is right on no more of the aligned images than by chance has learned nothing.
    networks["g0"] = {**colours, **network(0.1, 0.12, 0.098), **counts}
    told.watch.evaluated(2, {"unbiased": {**SOUND, **unbiased, "networks": networks}})
    assert told.all == [("chance_g0", 2)]


def test_few_conflicting_images_prove_nothing():
    g = network(0.8, 0.85, 0.8)
    g["conflicting_samples"] = 9
    assert Told().evaluated(networks__g0=g) == []


def test_methods_without_hsic_have_no_kernels():
    told = Told(method={"name": "vanilla"})
    vanilla = {"kernel_quantiles": {"f": [0, 0, 0]}, "networks": {"f": SOUND["networks"]["f"]}}
    assert told.evaluated(hsic=[], hsic_noise=[], **vanilla) == []


def test_without_selection_data_the_monitored_split_is_looked_at():
    told = Told(data={"selection": "none"})
    bad = {**SOUND, "hsic": [0.0]}
    told.watch.evaluated(7, {"biased": SOUND, "unbiased": bad, "rho0": SOUND})
    assert told.all == [("hsic_g0", 7)]
