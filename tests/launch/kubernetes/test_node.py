"""The programs of pods, as processes of this machine, with what the manifest gives them."""

import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.kubernetes.jobset import Pods, Volume, manifest
from rebias_dist.errors import EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_USAGE
from tests import ROOT
from tests.faults.processes import Started
from tests.launch.launched import state, wait_until

pytestmark = pytest.mark.timeout(3600)


def pods(folder: Path, config: dict[str, Any], *training: str, count: int = 2) -> list[Started]:
    """Start the containers of a run, which meet on loopback."""
    volumes = [Volume("work", str(folder), False)]
    given = Pods("image", count, 1, 0, volumes, "1Gi", 1000, 1000, 120, 3)
    jobset = manifest("two", yaml.safe_dump(config), training, given)
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    file = folder / "config.yaml"
    file.write_text(template["metadata"]["annotations"]["rebias-dist/config"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {
        "--master-addr=two-node-0-0.two": "--master-addr=127.0.0.1",
        "--master-port=29500": f"--master-port={port}",
        "--config=/etc/rebias/config.yaml": f"--config={file}",
    }
    arguments = [here.pop(word, word) for word in container["args"]]
    assert not here
    command = [sys.executable, *container["command"][1:], *arguments]
    variables = {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return [
        Started(command, folder / str(pod), JOB_COMPLETION_INDEX=str(pod), **variables)
        for pod in range(count)
    ]


def ends(started: list[Started]) -> list[int]:
    ended = [pod.end() for pod in started]
    assert not any(pod.left for pod in ended)
    return [pod.code for pod in ended]


@pytest.fixture
def slow(small_run) -> dict[str, Any]:
    """A run of twelve steps that lasts long enough to be interrupted."""
    f = {"kernel_size": 3, "width": 0.25, "seconds": 0.2}
    return {
        **small_run,
        "name": "two",
        "f": {"name": "tests.slurm.slow_network:build", "options": f},
        "max_steps": 12,
        "device": "cpu",
    }


@pytest.mark.slow
def test_a_pod_that_must_go_lets_the_whole_run_save_and_a_new_start_ends_it(tmp_path, slow):
    folder = tmp_path / "runs/two"
    first = pods(tmp_path, slow)
    wait_until(lambda: state(folder).get("step", 0) >= 1, "a step", first[0])
    # As a drained node does: one pod is asked, and the other learns it from the ranks.
    first[1].process.send_signal(signal.SIGTERM)
    assert ends(first) == [EXIT_INTERRUPTED] * 2
    assert 1 <= state(folder)["step"] < 12
    assert ends(pods(tmp_path, slow)) == [EXIT_FINISHED] * 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "f/loss" in line] == list(range(1, 13))


def test_a_run_that_is_refused_ends_its_pod_with_the_code_that_ends_the_jobset(tmp_path, slow):
    assert ends(pods(tmp_path, slow, "--resume=must", count=1)) == [EXIT_USAGE]
