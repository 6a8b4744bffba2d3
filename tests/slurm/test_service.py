"""list, stop and resume of a run on a real SLURM."""

import json
import sys

import pytest

from tests.slurm.runs import ROOT, STEPS, configuration, launch, state, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


def test_a_job_is_listed_stopped_and_resumed(cluster, tmp_path, small_run):
    runs = f"--runs-dir={tmp_path / 'runs'}"

    def service(*words):
        return cluster.run(sys.executable, "-m", "launch", *words, runs, cwd=ROOT)

    def listed():
        return json.loads(service("list", "--json"))

    held, folder = launch(cluster, tmp_path, "a", configuration(small_run, 0.5), "--", "--hold")
    assert (listed()["status"], listed()["job"]) == ("queued", held)
    service("stop", "a")
    assert listed()["status"] == "new"

    cluster.run("scontrol", "release", resumed(service("resume", "a")))
    wait_for_step(folder, 2)
    assert listed()["status"] == "running"
    service("stop", "a")
    assert listed()["status"] == "interrupted"
    assert 2 <= state(folder)["step"] < STEPS
    again = resumed(service("resume", "a"))
    cluster.run("scontrol", "release", again)
    assert cluster.wait(again) == "COMPLETED"
    assert listed()["status"] == "finished"


def resumed(said: str) -> str:
    """The job of what has been submitted again, held as it was the first time."""
    job = said.partition("submitted job ")[2].partition(",")[0]
    assert job.isdigit(), said
    return job
