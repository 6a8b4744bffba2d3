"""The speed of training, the time of its phases, and the memory that it uses.

=============================  =============================================================
``speed/images_per_s``         images a second, over all ranks
``speed/images_per_s_rank``    the same per rank
``speed/tflops``               10¹² model FLOPs a second, over all ranks; see ``flops.py``
``speed/mfu``                  model FLOPs utilisation: ``speed/tflops`` in percent of the peak of
                               the ranks' GPUs; only if that is known
``time/<phase>``               percent of the time, mean over the ranks; the phases add up to 100
``time/data_wait_most``        ``data_wait`` of the rank that waits longest for data; the others
                               wait for this rank in ``communication``
``memory/peak_rss_mib``        resident memory of a rank's process at its peak, the largest
``memory/peak_cuda_mib``       memory that torch has allocated on a GPU at its peak, the largest
=============================  =============================================================

The phases: ``data_wait`` (waiting for the loader, and the copy to the device), ``forward``,
``objective`` (losses and HSIC), ``backward``, ``communication`` (where it does not overlap with
other work; includes the wait for slower ranks), ``optimizer`` (with clipping and BatchNorm's
buffers) and ``other``. Speed and time are those since the last reading.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rebias_dist.phases import PHASES, clock_of, timed_by
from rebias_dist.ranks.device_wait import wait_for
from rebias_dist.step.precision import Precision
from rebias_dist.telemetry.flops import device_peak

_COLUMNS = (*PHASES, "rss", "cuda")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Reading:
    """What a meter measured since its last reading.

    Attributes:
        seconds: length of that time.
        images: images trained on, over all ranks.
        flops: model FLOPs done, over all ranks; None if they are not counted.
        peak: FLOPs a second that the device of a rank can do, None if unknown.
        by_rank: float64 ``[W, columns]``: for each rank the seconds of each phase and its memory
            in MiB. Only this rank's row is filled until the ranks sum it up.
    """

    seconds: float
    images: int
    flops: float | None
    peak: float | None
    by_rank: Tensor

    def scalars(self) -> dict[str, float]:
        """Return the scalars by tag, once ``by_rank`` is summed over the ranks."""
        ranks = len(self.by_rank)
        speed = self.images / self.seconds
        values = {"speed/images_per_s": speed, "speed/images_per_s_rank": speed / ranks}
        if self.flops is not None:
            values["speed/tflops"] = self.flops / self.seconds / 1e12
            if self.peak is not None:
                values["speed/mfu"] = 100 * self.flops / self.seconds / (ranks * self.peak)
        table = self.by_rank.cpu()
        times = table[:, : len(PHASES)]
        shares = 100 * times / times.sum(1, keepdim=True)
        means = shares.mean(0).tolist()
        values |= {f"time/{name}": share for name, share in zip(PHASES, means, strict=True)}
        values["time/data_wait_most"] = float(shares[:, PHASES.index("data_wait")].max())
        for name, most in zip(("rss", "cuda"), table[:, len(PHASES) :].amax(0), strict=True):
            if most > 0:  # 0: there is no such memory, or it cannot be read
                values[f"memory/peak_{name}_mib"] = float(most)
        return values


class Meter:
    """Measures speed, phases and memory; it never waits or communicates within a step.

    Args:
        global_batch: images of a step, over all ranks.
        rank: this rank.
        world_size: number of ranks, W.
        precision: of the networks, with this rank's device.
    """

    def __init__(self, global_batch: int, rank: int, world_size: int, precision: Precision) -> None:
        self.flops_per_step: float | None = None
        """Model FLOPs of each coming step, over all ranks; None: they are not counted."""
        self._global_batch = global_batch
        self._device = precision.device
        self._rank = rank
        self._world_size = world_size
        self._peak = device_peak(precision)
        self._clock = clock_of(precision.device)
        self._reset()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._steps = 0
        self._flops = 0.0

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Measure the phases of the code inside the block."""
        with timed_by(self._clock):
            yield self

    def start(self) -> None:
        """Discard the time since the last reading, which was not spent on training."""
        wait_for(self._device)
        self._clock.read()
        self._reset()

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        self._flops += self.flops_per_step or 0.0

    def read(self) -> Reading:
        """Return what was measured since the last reading, and start again."""
        wait_for(self._device)
        phases = self._clock.read()
        by_rank = torch.zeros(self._world_size, len(_COLUMNS), dtype=torch.float64)
        own = [*(phases[name] for name in PHASES), peak_rss(), self._peak_cuda()]
        by_rank[self._rank] = torch.tensor(own, dtype=torch.float64)
        reading = Reading(
            seconds=time.perf_counter() - self._started,
            images=self._steps * self._global_batch,
            flops=None if self.flops_per_step is None else self._flops,
            peak=self._peak,
            by_rank=by_rank,
        )
        self._reset()
        return reading

    def _peak_cuda(self) -> float:
        if self._device.type != "cuda":
            return 0.0
        return torch.cuda.max_memory_allocated(self._device) / 2**20


def peak_rss() -> float:
    """Return the peak resident memory of this process in MiB; 0 where /proc does not have it."""
    # Not getrusage, because a process inherits the peak of the one that started it.
    if not _STATUS.exists():
        return 0.0
    lines = _STATUS.read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def describe_speed(values: Mapping[str, float]) -> str:
    """Return the scalars of a reading as text for the progress line."""
    parts = [f"{name.replace('_', ' ')} {values[f'time/{name}']:.0f} %" for name in PHASES]
    if "speed/tflops" in values:
        parts.append(f"{values['speed/tflops']:.3g} TFLOP/s")
    if "speed/mfu" in values:
        parts.append(f"MFU {values['speed/mfu']:.1f} %")
    for name, label in (("cuda", "on the GPU"), ("rss", "resident")):
        if f"memory/peak_{name}_mib" in values:
            parts.append(f"{values[f'memory/peak_{name}_mib']:.0f} MiB {label}")
    return ", ".join(parts)
