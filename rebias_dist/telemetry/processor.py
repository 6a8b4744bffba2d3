"""The plan's line on a CPU: its threads, and what would be faster there."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from data_shards.system.processes import usable_cores

_CPUINFO = Path("/proc/cpuinfo")


def describe_cpu(precision: str) -> str:
    """Return the number of torch's threads, and better settings if there are any.

    Args:
        precision: of the run.
    """
    threads, cores = torch.get_num_threads(), usable_cores()
    free = max(1, cores - round(os.getloadavg()[0]))
    text = f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    if free < threads:
        text += (
            f"; other programs use about {cores - free} of {cores} cores, so "
            f"OMP_NUM_THREADS={free} may be faster"
        )
    if precision in ("float32", "tf32") and _has_amx():
        text += "; it has AMX, so --precision bf16 may be 2 to 3 times as fast"
    return text


def _has_amx() -> bool:
    """Return whether the processor multiplies matrices in bfloat16 (Intel's AMX)."""
    try:
        return "amx_bf16" in _CPUINFO.read_text(encoding="utf-8").split()
    except OSError:
        return False
