"""The numbers that follow from a configuration, a world size and a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rebias_dist.config.schema import Config, SchedulerConfig
from rebias_dist.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """The layout of a run. Only ``W`` and ``A`` depend on the ranks; no result depends on them."""

    N: int
    """Samples of an optimizer step."""
    b: int
    """Samples of a micro-batch."""
    M: int
    """Micro-batches of a step."""
    W: int
    """Ranks."""
    samples: int
    """Training samples."""
    steps_per_epoch: int
    dropped: int
    """Samples that an epoch leaves out, different ones in each epoch."""
    pretrain_epochs: int
    epochs: int
    """Epochs in all, pretraining included."""
    total_steps: int
    """Steps in all, cut by ``max_steps``."""

    @property
    def A(self) -> str:  # noqa: N802
        """Return the micro-batches on a rank, as text: the ranks may differ by one."""
        low, high = self.M // self.W, math.ceil(self.M / self.W)
        return str(low) if low == high else f"{low}-{high}"


@dataclass(frozen=True)
class Epoch:
    """What an epoch does."""

    number: int
    begin: int
    """The step at which it begins, counted over the whole run."""
    end: int
    """The step at which it ends, or the run does."""
    playing: bool
    """The game of f and g is played; otherwise they pretrain, each on its own."""
    train_f: bool
    """f pretrains."""
    train_g: bool
    """Every g pretrains."""


def check_world(config: Config, world_size: int) -> None:
    """Refuse more ranks than micro-batches, naming the values that would work."""
    n, b = config.global_batch, config.b
    if world_size > n // b:
        fitting = [d for d in range(1, b + 1) if n % d == 0 and n // d >= world_size]
        cure = f"at most {n // b} ranks"
        if fitting:
            cure += f", micro_batch {fitting[-1]} or less"
        cure += f", or global_batch {b * world_size} with a learning rate for it"
        raise ConfigError(
            f"micro_batch: {n} / {b} gives {n // b} micro-batches a step, "
            f"too few for {world_size} ranks; use {cure}"
        )


def derive(config: Config, world_size: int, samples: int) -> Plan:
    """Derive the plan, or raise ``ConfigError`` when the parts do not fit together."""
    check_world(config, world_size)
    steps, dropped = divmod(samples, config.global_batch)
    if steps == 0:
        raise ConfigError(
            f"global_batch: {config.global_batch} exceeds the {samples} training samples; "
            f"use at most {samples}"
        )
    units = config.epochs * (1 if config.scheduler.unit == "epoch" else steps)
    if config.scheduler.warmup >= units:
        raise ConfigError(
            f"scheduler.warmup: {config.scheduler.warmup} {config.scheduler.unit}s of warm-up "
            f"leave nothing of the {units}; use at most {units - 1}"
        )
    epochs = config.pretrain_epochs + config.epochs
    total = epochs * steps
    return Plan(
        N=config.global_batch,
        b=config.b,
        M=config.global_batch // config.b,
        W=world_size,
        samples=samples,
        steps_per_epoch=steps,
        dropped=dropped,
        pretrain_epochs=config.pretrain_epochs,
        epochs=epochs,
        total_steps=min(total, config.max_steps or total),
    )


def epoch(config: Config, plan: Plan, number: int) -> Epoch:
    """Return what an epoch does, counted from 0 with pretraining included."""
    begin = number * plan.steps_per_epoch
    after_pretraining = number - plan.pretrain_epochs
    return Epoch(
        number=number,
        begin=begin,
        end=min(begin + plan.steps_per_epoch, plan.total_steps),
        playing=after_pretraining >= 0,
        train_f=number < config.method.f_pretrain_epochs,
        train_g=number < config.method.g_pretrain_epochs,
    )


def rate_of_step(config: Config, plan: Plan, step: int) -> float:
    """Return the learning rate of a step, counted over the whole run."""
    length = plan.steps_per_epoch
    at, total = step - plan.pretrain_epochs * length, config.epochs * length
    if config.scheduler.unit == "epoch":
        at, total = at // length, config.epochs
    return learning_rate(config.optimizer.lr, config.scheduler, at, total)


def learning_rate(base: float, scheduler: SchedulerConfig, at: int, total: int) -> float:
    """Return the learning rate at a unit (epoch or step), counted from the end of pretraining.

    A pure function, so that nothing has to be restored when a run resumes. Pretraining
    (``at < 0``) uses the base rate. ``total`` is the number of units after pretraining;
    cosine falls as in SGDR (Loshchilov & Hutter 2017, eq. 5) without restarts.
    """
    if at < 0:
        return base
    warmup = scheduler.warmup
    if at < warmup:
        return base * (at + 1) / (warmup + 1)
    at, total = at - warmup, total - warmup
    if scheduler.name == "step":
        reductions = at // scheduler.step_size
        if scheduler.milestones:
            reductions = sum(at >= milestone for milestone in scheduler.milestones)
        return base * float(scheduler.gamma**reductions)
    if scheduler.name == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * at / total))
    return base


def describe(config: Config, plan: Plan, facts: dict[str, str]) -> list[str]:
    """Return the plan as lines of text, every derived number among them.

    Args:
        config: the configuration.
        plan: what follows from it.
        facts: further lines, by name: data, networks, device.
    """
    o, s, sampling = config.optimizer, config.scheduler, config.data.sampling
    left_out = f"{plan.dropped} dropped an epoch"
    if sampling != "uniform":
        left_out = f"drawn with replacement ({sampling})"
    begin = plan.pretrain_epochs * plan.steps_per_epoch
    end = plan.epochs * plan.steps_per_epoch - 1
    first, last = (rate_of_step(config, plan, step) for step in (begin, end))
    warmup = f", {s.warmup} {s.unit}s of warm-up to {o.lr:g}" if s.warmup else ""
    lines = {
        "method": f"{config.method.name}, precision {config.precision}",
        "global batch": f"N = {plan.N} samples a step",
        "micro-batch": f"b = {plan.b}, so M = {plan.M} a step",
        "layout": f"W = {plan.W} ranks, A = {plan.A} micro-batches on each",
        "samples": f"{plan.samples:,} for training, {left_out}",
        "steps": f"{plan.steps_per_epoch} an epoch, {plan.total_steps} in all "
        f"({plan.pretrain_epochs} epochs of pretraining, {config.epochs} of the game)",
        "learning rate": f"{first:g} to {last:g} ({o.name}, {s.name}{warmup})",
        "deterministic": "yes" if config.deterministic else "no (default algorithms)",
        **facts,
    }
    return [f"{name:15} {text}" for name, text in lines.items()]
