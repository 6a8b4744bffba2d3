"""Four hosts with their own addresses train together; one is cut off; the run resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.netns.hosts import Hosts, why_not
from tests.slurm.cluster import wait_until
from tests.slurm.runs import (
    ROOT,
    STEPS,
    alone,
    configuration,
    losses,
    state,
    wait_for_step,
)

pytestmark = pytest.mark.timeout(3600)
HOSTS = 4


@pytest.fixture
def hosts():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    found = Hosts(HOSTS)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def start(hosts: Hosts, file: Path, runs: Path, attempt: int) -> list[subprocess.Popen[bytes]]:
    """Start a torchrun on each host."""
    processes = []
    for host in range(HOSTS):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"]
        torchrun += [f"--nnodes={HOSTS}", f"--node-rank={host}", "--max-restarts=0"]
        torchrun += [f"--master-addr={hosts.address(0)}", f"--master-port={29400 + attempt}"]
        train = ["-m", "rebias_dist.train", f"--config={file}", "--name=r", f"--runs-dir={runs}"]
        with (runs.parent / f"host{host}-{attempt}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [*hosts.on(host), *torchrun, *train],
                    cwd=ROOT,
                    # By default gloo would use the address of the machine's host name.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_the_run_and_the_run_resumes(hosts, tmp_path, small_run):
    patience = {"start_minutes": 4.0, "step_minutes": 0.25}
    config = configuration(small_run, faults=patience, checkpoint={"every_steps": 1})
    undisturbed = alone(config, tmp_path, "alone")
    options = {**config["f"]["options"], "seconds": 0.5}
    slow = {**config, "f": {**config["f"], "options": options}}
    file, runs = tmp_path / "slow.yaml", tmp_path / "several" / "runs"
    runs.mkdir(parents=True)
    file.write_text(yaml.safe_dump(slow))

    processes = start(hosts, file, runs, 0)
    try:
        wait_for_step(runs / "r", 3)
        hosts.cut(2)
        # All hosts end without a signal, including the one that is cut off.
        wait_until(lambda: all(p.poll() is not None for p in processes), "all have ended", 150)
    finally:
        for process in processes:
            process.kill()
    logs = [(runs.parent / f"host{host}-0.log").read_text() for host in range(HOSTS)]
    assert all(process.returncode != 0 for process in processes)
    assert all("another rank is lost" in log for log in logs), logs
    assert 3 <= state(runs / "r")["step"] < STEPS

    hosts.plug(2)
    processes = start(hosts, file, runs, 1)
    try:
        wait_until(lambda: all(p.poll() is not None for p in processes), "all have ended", 280)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * HOSTS
    expected, found = losses(undisturbed), losses(runs / "r")
    assert found.keys() == expected.keys()
    furthest = max(
        abs(value - expected[step][name]) / max(abs(expected[step][name]), 1.0)
        for step, values in found.items()
        for name, value in values.items()
    )
    print(f"largest relative difference {furthest:.1e}")
    assert furthest < 1e-10
    attempts = json.loads((runs / "r/attempts.json").read_text())["attempts"]
    assert len(attempts) == 2
    assert attempts[1]["from"] >= 3
