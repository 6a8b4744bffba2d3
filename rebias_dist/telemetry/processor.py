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
    if precision in ("float32", "tf32"):
        text += _faster_precision()
    return text


def _faster_precision() -> str:
    """Return what bf16 gains if the processor multiplies in bfloat16 (docs/performance.md)."""
    try:
        flags = _CPUINFO.read_text(encoding="utf-8").split()
    except OSError:
        return ""
    known = (("amx_bf16", "AMX", "2 to 3"), ("avx512_bf16", "AVX-512", "1.2 to 2.7"))
    for flag, name, gain in known:
        if flag in flags:
            return f"; it has {name} for bfloat16, so --precision bf16 may be {gain} times as fast"
    return ""
