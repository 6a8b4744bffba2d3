"""The checks for machines with GPUs run on a CPU as well, in tiny cases."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

CHEAP = ("environment", "parts_of_a_step")
LONGER = (
    "equal_steps", "without_waiting", "objectives", "steps", "loader", "ranks", "resume", "signals"
)  # fmt: skip


def gpu(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    given = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1000, env=given
    )


@pytest.mark.parametrize("parts", [CHEAP, pytest.param(LONGER, marks=pytest.mark.slow)])
def test_every_part_runs_on_a_cpu(parts):
    done = gpu("--device", "cpu", "--quick", "--minutes", "600", "--only", *parts)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for part in parts:
        assert f"| {part} | fine |" in done.stdout


def test_a_part_without_time_is_named():
    done = gpu("--device", "cpu", "--quick", "--minutes", "0", "--only", "environment")
    assert done.returncode == 1
    assert "| environment | no time was left |" in done.stdout


def test_without_a_gpu_it_says_so_in_one_line():
    done = gpu(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no GPU here")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
