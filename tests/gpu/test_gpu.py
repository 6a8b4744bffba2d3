"""The checks of benchmarks.gpu, which are properties and no times."""

import subprocess
import sys

import pytest
import torch

from tests import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.mark.parametrize(
    "part", ["equal_steps", "objectives", "without_waiting", "resume", "ranks", "signals", "loader"]
)
def test_part(part, tmp_path):
    """The same numbers as on the CPU, no hidden waits, the same bits again, ranks, signals."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--only", part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
