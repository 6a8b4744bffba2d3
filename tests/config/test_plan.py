"""The plan that follows from a configuration, and the learning rates, against torch's."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rebias_dist.config.files import read_config_file, validate
from rebias_dist.config.plan import check_world, derive, describe, learning_rate, rate_of_step
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


def _theirs(scheduler, total):
    """Return torch's learning rates of a schedule with warm-up, for a base rate of 0.1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    warmup = scheduler["warmup"]
    after = {
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, scheduler["step_size"], 0.3),
        "milestones": lambda: torch.optim.lr_scheduler.MultiStepLR(
            optimizer, scheduler["milestones"], 0.3
        ),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }["milestones" if scheduler["milestones"] else scheduler["name"]]
    if not warmup:
        schedule = after()
    else:
        linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, after()], [warmup])
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@given(
    schedule=st.sampled_from([("step", []), ("step", [2, 3]), ("cosine", []), ("constant", [])]),
    unit=st.sampled_from(["epoch", "step"]),
    warmup=st.integers(0, 5),
    step_size=st.integers(1, 4),
    pretrain=st.integers(0, 2),
)
@settings(deadline=None, max_examples=60)
def test_learning_rates_are_torchs_by_epoch_and_by_step(
    schedule, unit, warmup, step_size, pretrain
):
    epochs, length = 6, 3
    name, milestones = schedule
    scheduler = {
        "name": name, "unit": unit, "warmup": warmup, "step_size": step_size,
        "milestones": milestones, "gamma": 0.3,
    }  # fmt: skip
    config = validate(
        {
            "epochs": epochs,
            "global_batch": 4,
            "optimizer": {"lr": 0.1},
            "scheduler": scheduler,
            "method": {"g_pretrain_epochs": pretrain},
        }
    )
    plan = derive(config, 1, 4 * length + 1)
    assert plan.total_steps == (pretrain + epochs) * length
    found = [rate_of_step(config, plan, step) for step in range(plan.total_steps)]
    assert found[: pretrain * length] == [0.1] * (pretrain * length)
    if unit == "epoch":
        expected = [rate for rate in _theirs(scheduler, epochs) for _ in range(length)]
    else:
        expected = _theirs(scheduler, epochs * length)
    assert found[pretrain * length :] == pytest.approx(expected, rel=1e-9, abs=1e-15)
    line = next(line for line in describe(config, plan, {}) if line.startswith("learning rate"))
    assert (f"{warmup} {unit}s of warm-up to 0.1" in line) == (warmup > 0)


@pytest.mark.parametrize(("unit", "units"), [("epoch", 6), ("step", 18)])
def test_a_warm_up_without_end_is_refused(unit, units):
    def plan_with(warmup):
        scheduler = {"warmup": warmup, "unit": unit}
        return derive(validate({"epochs": 6, "global_batch": 4, "scheduler": scheduler}), 1, 12)

    plan_with(units - 1)
    with pytest.raises(ConfigError, match=f"^scheduler.warmup: {units} .* at most {units - 1}$"):
        plan_with(units)
