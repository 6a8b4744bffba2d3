"""The folder of a run."""

import os
import subprocess
import sys

from rebias_dist.config.files import validate
from rebias_dist.runs.run_folder import open_run
from tests import ROOT
from tests.data_shards.system.test_files import KILLED


def test_a_run_clears_what_a_killed_process_left(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "runs" / "a")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    config = validate({"name": "a", "runs_dir": str(tmp_path / "runs")})
    with open_run(config, "auto"):
        names = {path.name for path in (tmp_path / "runs/a").iterdir()}
    assert names == {"checkpoints", "config.yaml", "lock"}
