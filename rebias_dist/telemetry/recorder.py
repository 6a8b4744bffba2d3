"""Records a run step by step: scalars, speed, warnings, traces and progress."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

from rebias_dist.config.plan import Plan
from rebias_dist.config.schema import Config
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.step.metrics import Metrics
from rebias_dist.step.precision import Precision
from rebias_dist.telemetry.meter import Meter, describe_speed
from rebias_dist.telemetry.profiling import profiled
from rebias_dist.telemetry.trackers import open_trackers
from rebias_dist.telemetry.watch import Watch
from rebias_dist.telemetry.writers import Telemetry

# Steps between two entries. To read the values of a step, the host waits for the device.
_EVERY = {"cpu": 1, "cuda": 10}

_log = logging.getLogger("rebias_dist")


class Recorder:
    """The records of a run on this rank; making it is a collective.

    Args:
        config: of the run, with a name.
        folder: of the run.
        plan: of the run.
        classes: number of classes.
        consensus: the ranks.
        precision: of the networks, with their device.
        start_step: optimizer steps done before, when a run resumes.
        held: receives the contexts that stay open for the whole run.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        plan: Plan,
        classes: int,
        *,
        consensus: Consensus,
        precision: Precision,
        start_step: int,
        held: ExitStack,
    ) -> None:
        self._plan = plan
        self._every = config.log.every_steps or _EVERY[precision.device.type]
        with consensus.together():
            self.telemetry = Telemetry(
                folder,
                rank=consensus.rank,
                total_steps=plan.total_steps,
                global_batch=plan.N,
                start_step=start_step,
                identity={
                    "name": config.name,
                    "method": config.method.name,
                    "world_size": consensus.world_size,
                    "pid": os.getpid(),
                    "host": platform.node(),
                },
                tensorboard="tensorboard" in config.log.to,
                apart=open_trackers(config, folder) if consensus.rank == 0 else (),
            )
        self.meter = Meter(plan.N, consensus.rank, consensus.world_size, precision)
        self.watch = Watch(config, classes, self.telemetry.warning)
        trace = profiled(config.log.profile, folder / "profile", consensus.rank, precision.device)
        self._trace_step = held.enter_context(trace)
        held.enter_context(self.meter.running())
        self._text = self._details = ""

    def is_due(self, step: int) -> bool:
        """Return whether :meth:`step` records the values of a step."""
        return step % self._every == 0 or step == self._plan.total_steps

    def step(
        self,
        step: int,
        epoch: int,
        metrics: Metrics,
        constants: Callable[[], Mapping[str, float]],
        skipped: Collection[str],
    ) -> None:
        """Record a step; a collective at the steps that are logged.

        Args:
            step: optimizer steps taken, including this one.
            epoch: the current epoch.
            metrics: of the step.
            constants: returns further scalars, such as learning rates.
            skipped: networks whose update was skipped.
        """
        self.meter.step()
        self._trace_step()
        for name in skipped:
            _log.warning(
                "step %d: the gradient of %s is not finite, its update was skipped", step, name
            )
        if self.is_due(step):
            reading = self.meter.read()
            values = metrics.reduce(self._plan.N, reading.by_rank)
            values |= {**constants(), **reading.scalars()}
            self.telemetry.scalars(step, values, epoch=epoch)
            self.watch.step(step, values)
            losses = {
                tag.removesuffix("/loss"): values[tag] for tag in values if tag.endswith("/loss")
            }
            self._text = "loss " + " ".join(f"{name} {losses[name]:.4f}" for name in losses)
            self._details = describe_speed(values)
        self.telemetry.progress(step, epoch=epoch, text=self._text, details=self._details)
        self.telemetry.state("running", step=step, epoch=epoch)
