"""The line that every benchmark prints first: on what its numbers were measured."""

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch


def describe() -> str:
    """Date, processor, cores, threads, torch version and commit."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [s for s in information.read_text().splitlines() if s.startswith("model name")]
        processor = names[0].partition(": ")[2] if names else processor
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return (
        f"{date.today()}, {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, commit {commit or 'unknown'}"
    )
