"""The plan that follows from a configuration, and the learning rates, against torch's."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rebias_dist.config.files import read_config_file, validate
from rebias_dist.config.plan import check_world, derive, learning_rate
from rebias_dist.errors import ConfigError


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 80))
@settings(deadline=None)
def test_more_ranks_than_micro_batches_are_refused_with_values_that_work(b, m, world):
    assume(b * m > 1)
    config = validate({"global_batch": b * m, "micro_batch": b, "method": {"name": "vanilla"}})
    if world <= m:
        check_world(config, world)
        return
    with pytest.raises(ConfigError, match=r"^micro_batch: ") as refusal:
        check_world(config, world)
    line = str(refusal.value)
    assert f"at most {m} ranks" in line
    check_world(config, m)
    larger = re.search(r"global_batch (\d+) with", line)
    assert larger
    check_world(validate({**config.model_dump(), "global_batch": int(larger[1])}), world)
    if named := re.search(r"micro_batch (\d+) or less", line):
        smaller = validate({**config.model_dump(), "micro_batch": int(named[1])})
        check_world(smaller, world)
    else:
        assert world > b * m  # not even one sample for each


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 5000))
@settings(deadline=None)
def test_the_plan_adds_up(b, m, world, samples):
    n = b * m
    assume(n >= 2 and world <= m)
    values = {"global_batch": n, "micro_batch": b, "epochs": 3}
    config = validate({**values, "method": {"name": "biased", "g_pretrain_epochs": 2}})
    if samples < n:
        with pytest.raises(ConfigError, match=f"^global_batch: {n} exceeds the {samples} "):
            derive(config, world, samples)
        return
    plan = derive(config, world, samples)
    assert plan.steps_per_epoch * n + plan.dropped == samples
    assert 0 <= plan.dropped < n
    assert plan.total_steps == 5 * plan.steps_per_epoch
    dealt = [len(range(rank, m, world)) for rank in range(world)]
    low, high = min(dealt), max(dealt)
    expected = str(low) if low == high else f"{low}-{high}"
    assert expected == plan.A


def test_learning_rates_of_the_published_protocols():
    mnist = validate(read_config_file("biased_mnist/rebias"))
    rates = [learning_rate(mnist.optimizer.lr, mnist.scheduler, e, 80) for e in range(-1, 80)]
    expected = [1e-3] * 21 + [1e-4] * 20 + [1e-5] * 20 + [1e-6] * 20
    worst = max(abs(a / b - 1) for a, b in zip(rates, expected, strict=True))
    print(f"largest relative difference {worst:.1e}")
    assert worst < 1e-12

    imagenet = validate(read_config_file("imagenet9/rebias"))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=120)
    worst = 0.0
    for epoch in range(120):
        ours = learning_rate(imagenet.optimizer.lr, imagenet.scheduler, epoch, 120)
        worst = max(worst, abs(ours - theirs.get_last_lr()[0]))
        optimizer.step()
        theirs.step()
    print(f"largest difference to torch {worst:.1e}")
    assert worst < 1e-15
