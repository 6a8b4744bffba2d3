"""Runs on a real SLURM: both scripts give the same figures, and disturbances lose nothing."""

import re
import subprocess
import sys
from socket import gethostname

import pytest
import yaml

from rebias_dist.ranks.placement import first_host
from tests.slurm.cluster import wait_until
from tests.slurm.runs import (
    ROOT,
    STEPS,
    alone,
    assert_same_end,
    configuration,
    launch,
    losses,
    output,
    state,
    wait_for_step,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def undisturbed(cluster, folder, few_digits):
    """Return the run on two nodes by each script, both at the same time, and by one process."""
    config = configuration(
        {
            "global_batch": 48,
            "micro_batch": 12,
            "epochs": 3,
            "precision": "float64",
            "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
            "radius": {"f": 1.0, "g": 1.0},
            "evaluate": {"every_epochs": 3},
            "log": {"to": []},
            "data": {"source": str(few_digits), "image_size": 8, "rho": 0.8},
        }
    )
    # This run comes first, so that the others find the shards in the cache.
    runs = {"alone": alone(config, folder, "alone")}
    jobs = {}
    for by in ("torchrun", "srun"):
        jobs[by], runs[by] = launch(cluster, folder, by, config, "--nodes=2", f"--by={by}")
    for by, job in jobs.items():
        assert cluster.wait(job) == "COMPLETED", output(runs[by])
    return {"config": config, **runs}


def slow(config: dict, seconds: float) -> dict:
    options = {**config["f"]["options"], "seconds": seconds}
    return {**config, "f": {**config["f"], "options": options}}


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_two_nodes_train_as_one_process(undisturbed, by):
    expected, found = losses(undisturbed["alone"]), losses(undisturbed[by])
    assert len(found) == len(expected) == STEPS
    furthest = max(
        abs(value - expected[step][name]) / max(abs(expected[step][name]), 1.0)
        for step, values in found.items()
        for name, value in values.items()
    )
    print(f"{by}: largest relative difference {furthest:.1e}")
    assert furthest < 1e-10
    said = output(undisturbed[by])
    assert re.search(rf"started by +{by}, 2 ranks.* SLURM job \d+$", said, re.MULTILINE)
    assert not list(undisturbed[by].glob("launcher/attempt-*"))


@pytest.mark.slow
def test_torchruns_that_find_each_other_by_c10d(cluster, folder, undisturbed):
    """The command lines of the README work."""
    file = folder / "c10d.yaml"
    file.write_text(yaml.safe_dump(undisturbed["config"]))
    python = f"{sys.executable} -m torch.distributed.run --nnodes=$SLURM_NNODES --nproc_per_node=1"
    meeting = f"--rdzv_backend=c10d --rdzv_id=$SLURM_JOB_ID --rdzv_endpoint={gethostname()}:29517"
    train = f"-m rebias_dist.train --config={file} --name=c10d --runs-dir={folder / 'runs'}"
    nodes = ["--nodes=2", "--ntasks-per-node=1"]
    cluster.run("srun", *nodes, "bash", "-c", f"{python} {meeting} {train}", cwd=ROOT)
    run = folder / "runs/c10d"
    assert state(run)["world_size"] == 2
    expected, found = losses(undisturbed["alone"]), losses(run)
    assert found.keys() == expected.keys()
    for step, values in found.items():
        assert values == pytest.approx(expected[step], rel=1e-10, abs=1e-10)


@pytest.mark.slow
def test_the_warning_ahead_of_the_time_limit_saves_and_requeues(cluster, folder, undisturbed):
    # The same signal as from --signal, to the same processes, but at a chosen step.
    config = slow(undisturbed["config"], 0.3)
    jobs = {
        by: launch(cluster, folder, f"warned-{by}", config, "--nodes=2", f"--by={by}")
        for by in ("torchrun", "srun")
    }
    for job, run in jobs.values():
        assert "--signal=USR2@120" in (run / "launcher/job.sbatch").read_text()
        wait_for_step(run, 2)
        cluster.run("scancel", "--signal=USR2", job)
    for by, (job, run) in jobs.items():
        assert cluster.wait(job) == "COMPLETED", output(run)
        said = output(run)
        assert "interrupted after a save; the job queues again" in said
        assert re.search(rf"started by +{by}, 2 ranks.* SLURM job {job}, restart 1$", said, re.M)
        assert_same_end(run, undisturbed[by])


@pytest.mark.slow
def test_a_cancelled_run_can_be_resumed(cluster, folder, undisturbed):
    config = slow(undisturbed["config"], 0.3)
    job, run = launch(cluster, folder, "cancelled", config, "--nodes=2", "--by=srun")
    wait_for_step(run, 2)
    options = ["--cpu", "--name=cancelled", f"--runs-dir={folder / 'runs'}", "--nodes=2"]
    refused = subprocess.run(
        [sys.executable, "-m", "launch", "slurm", str(folder / "cancelled.yaml"), *options],
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert refused.returncode == 2
    assert f"job {job} is at work on the run" in refused.stderr
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    assert state(run)["status"] == "interrupted"
    assert 2 <= state(run)["step"] < STEPS
    resume = ["-m", "launch", "resume", "cancelled", f"--runs-dir={folder / 'runs'}"]
    said = cluster.run(sys.executable, *resume, cwd=folder)
    job = said.partition("submitted job ")[2].partition(",")[0]
    assert cluster.wait(job) == "COMPLETED", output(run)
    assert_same_end(run, undisturbed["srun"])


def test_unequal_nodes_are_refused(cluster, folder, undisturbed):
    words = ["--nodes=2", "--partition=uneven", "--", "--exclusive"]
    job, run = launch(cluster, folder, "uneven", undisturbed["config"], *words)
    assert cluster.wait(job) == "FAILED"
    assert "ExitCode=2:0" in cluster.show(job)
    assert "unequal nodes" in output(run)
    assert not (run / "config.yaml").exists()


def test_a_wrong_run_is_not_queued_again(cluster, folder, undisturbed):
    nothing = {**undisturbed["config"]["data"], "source": str(folder / "nothing")}
    config = {**undisturbed["config"], "data": nothing}
    job, run = launch(cluster, folder, "wrong", config, "--nodes=2", "--by=srun")
    assert cluster.wait(job) == "FAILED"
    assert "ExitCode=2:0" in cluster.show(job)
    assert "nothing" in output(run)


PLACE = "from rebias_dist.ranks.placement import resolve_placement as p; x = p();"
PLACE += "print(x.rank, x.world_size, x.local_rank, x.origin)"


def test_the_resolver_in_every_way_to_be_inside_a_job(cluster, folder):
    python = [sys.executable, "-c", PLACE]
    assert re.search(
        r"^0 1 0 a single process in SLURM job \d+$",
        cluster.run("salloc", "--quiet", "--nodes=2", *python, cwd=ROOT),
        re.MULTILINE,
    )
    found = cluster.run("srun", "--nodes=2", "--ntasks-per-node=2", *python, cwd=ROOT).splitlines()
    assert [re.sub(r"job \d+", "job J", line) for line in sorted(found)] == [
        f"{rank} 4 {rank % 2} srun, 4 ranks on n[0-1] in SLURM job J" for rank in range(4)
    ]
    out = folder / "batch.out"
    words = ["--nodes=2", "--ntasks=2", f"--output={out}", "--wait", "--chdir", str(ROOT)]
    script = folder / "batch.sh"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{PLACE}'\n")
    cluster.run("sbatch", *words, str(script))
    assert "0 1 0 a single process in SLURM job" in out.read_text()
    assert "(srun would start 2 ranks)" in out.read_text()


def test_the_first_host_is_slurms_own(cluster):
    for short in ("n[0-1]", "a[09-11],b", "r[2-3]n[04,07-09]", "x,y[1-2]", "n3"):
        hosts = cluster.run("scontrol", "show", "hostnames", short).split()
        assert first_host(short) == hosts[0]


# ---------------------------------------------------------------- slow


@pytest.mark.slow
def test_a_real_time_limit(cluster, folder, undisturbed):
    # Eight steps of at least 8 s do not fit into the minute before the warning.
    config = slow(undisturbed["config"], 2.0)
    words = ["--nodes=2", "--by=torchrun", "--time=2", "--warning=60"]
    job, run = launch(cluster, folder, "limited", config, *words)
    assert cluster.wait(job, 580) == "COMPLETED", output(run)
    assert re.search(rf"SLURM job {job}, restart [1-9]", output(run))
    assert "DUE TO TIME LIMIT" not in output(run)
    assert_same_end(run, undisturbed["torchrun"])


@pytest.mark.slow
def test_the_warning_comes_again_after_a_requeue(cluster, folder, undisturbed):
    # A step takes sixteen seconds, so at least two warnings are needed.
    config = slow(undisturbed["config"], 4.0)
    words = ["--nodes=2", "--by=srun", "--time=2", "--warning=60"]
    job, run = launch(cluster, folder, "limited-twice", config, *words)
    assert cluster.wait(job, 1000) == "COMPLETED", output(run)
    assert f"SLURM job {job}, restart 2" in output(run)
    assert "DUE TO TIME LIMIT" not in output(run)
    assert_same_end(run, undisturbed["srun"])


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_a_preempted_run_goes_on(cluster, folder, undisturbed, by):
    config = slow(undisturbed["config"], 0.5)
    job, run = launch(cluster, folder, f"preempted-{by}", config, "--nodes=2", f"--by={by}")
    wait_for_step(run, 2)
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--quiet", "sleep", "5"]
    cluster.run("srun", *urgent)
    assert cluster.wait(job, 500) == "COMPLETED", output(run)
    assert re.search(rf"SLURM job {job}, restart [1-9]", output(run))
    assert "continuing" in output(run)
    assert_same_end(run, undisturbed[by])


@pytest.mark.slow
def test_a_lost_node_requeues(cluster, folder, undisturbed):
    config = {**slow(undisturbed["config"], 0.5), "checkpoint": {"every_steps": 1}}
    job, run = launch(cluster, folder, "lost", config, "--nodes=2", "--by=srun")
    wait_for_step(run, 3)
    cluster.lose_node("n1")
    wait_until(lambda: "Restarts=0" not in cluster.show(job), f"job {job} is queued again", 300)
    cluster.start_node("n1")
    assert cluster.wait(job, 500) == "COMPLETED", output(run)
    assert "continuing" in output(run)
    assert_same_end(run, undisturbed["srun"])
