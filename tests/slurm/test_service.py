"""The commands list, stop and resume for a run on a real SLURM."""

import json
import subprocess
import sys

import pytest

from tests.slurm.runs import ROOT, STEPS, configuration, launch, state, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]


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


@pytest.mark.slow  # stop gives the job half a minute
def test_a_run_has_one_owner_here_or_in_the_queue(cluster, tmp_path, small_run):
    config = configuration(small_run, 0.3, max_steps=10_000, epochs=10_000)
    job, folder = launch(cluster, tmp_path, "a", config, "--", "--hold")
    file, place = str(tmp_path / "a.yaml"), ["--name=a", f"--runs-dir={tmp_path / 'runs'}"]
    refused = subprocess.run(
        [sys.executable, "-m", "launch", "local", file, *place],
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert f"job {job}" in refused.stderr
    # The training itself does not ask the queue, so it starts; stop then finds both.
    training = subprocess.Popen(
        [sys.executable, "-m", "rebias_dist.train", f"--config={file}", *place],
        env=cluster.environment,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_step(folder, 1)
        said = cluster.run(sys.executable, "-m", "launch", "stop", "a", place[1], cwd=ROOT)
        assert training.wait(60) == 75
    finally:
        training.kill()
        training.wait()
    assert "a: interrupted" in said
    assert cluster.state(job) == "CANCELLED"


def resumed(said: str) -> str:
    """Return the job that resume submitted; it is held, as the first one was."""
    job = said.partition("submitted job ")[2].partition(",")[0]
    assert job.isdigit(), said
    return job
