"""Traces of a few steps, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_WAIT, _WARM_UP = 2, 1  # steps before the recording: the first steps allocate and compile


@contextmanager
def profiled(
    steps: int, folder: Path, rank: int, device: torch.device
) -> Iterator[Callable[[], None]]:
    """Profile some steps; yield the function to call after each step.

    Args:
        steps: number of steps to record, after the first three; 0: none.
        folder: ``rank<k>.json.gz`` is written there after the last of them.
        rank: of this process; each has its own trace.
        device: of this process.
    """
    if steps == 0:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=_WAIT, warmup=_WARM_UP, active=steps, repeat=1),
        on_trace_ready=lambda p: p.export_chrome_trace(str(folder / f"rank{rank}.json.gz")),
        record_shapes=True,
    ) as recording:
        yield recording.step
