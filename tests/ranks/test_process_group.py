"""Which rank a process is, from its environment, and what the ranks check before they join."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from rebias_dist.errors import ConfigError
from rebias_dist.ranks.placement import first_host, how_to_run_alone, is_rank_zero
from rebias_dist.ranks.process_group import choose_device, resolve_placement
from rebias_dist.ranks.roll_call import _missing, verdict
from tests import ROOT

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
ALLOCATION = {
    "SLURM_JOB_ID": "71",
    "SLURM_JOB_NODELIST": "localhost,n[2-3]",
    "SLURM_NNODES": "4",
    "SLURM_TASKS_PER_NODE": "2(x4)",
}
BATCH = ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
SRUN = ALLOCATION | {
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
ONE_A_NODE = SRUN | {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
LEFT_OVER = {"MASTER_ADDR": "left over", "PATH": "/bin"}
# An interactive shell in a step of SLURM's own (LaunchParameters=use_interactive_step).
SHELL = BATCH | {"SLURM_STEP_ID": "4294967290"}
PORT = 10_000 + 71 + 2 * 1009


@pytest.mark.parametrize(
    ("environment", "rank", "world", "local", "origin"),
    [
        ({}, 0, 1, 0, "a single process"),
        (LEFT_OVER, 0, 1, 0, "a single process"),
        (TORCHRUN, 3, 8, 1, "torchrun, 8 ranks"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, 3, 8, 1, "torchrun, 8 ranks"),
        (ALLOCATION, 0, 1, 0, "a single process in SLURM job 71"),
        (BATCH, 0, 1, 0, "a single process in SLURM job 71 (srun would start 8 ranks)"),
        (SHELL, 0, 1, 0, "a single process in SLURM job 71 (srun would start 8 ranks)"),
        (TORCHRUN | ALLOCATION, 3, 8, 1, "torchrun, 8 ranks, in SLURM job 71"),
        (TORCHRUN | BATCH, 3, 8, 1, "torchrun, 8 ranks, in SLURM job 71"),
        (SRUN, 5, 8, 1, "srun, 8 ranks on localhost in SLURM job 71"),
        (
            SRUN | {"SLURM_RESTART_COUNT": "2"},
            *(5, 8, 1),
            "srun, 8 ranks on localhost in SLURM job 71, restart 2",
        ),
        (
            TORCHRUN | ONE_A_NODE | {"GROUP_WORLD_SIZE": "4"},
            *(3, 8, 1),
            "torchrun, 8 ranks, in SLURM job 71",
        ),
        (
            SRUN
            | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
            | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            *(0, 1, 0),
            "srun, 1 rank on localhost in SLURM job 71",
        ),
    ],
)
def test_who_decides(environment, rank, world, local, origin):
    place = resolve_placement(environment)
    assert (place.rank, place.world_size, place.local_rank) == (rank, world, local)
    assert place.origin == origin
    assert is_rank_zero(environment) == (rank == 0)


def test_where_the_ranks_of_srun_meet():
    place = resolve_placement(SRUN)
    assert (place.address, place.port) == ("localhost", PORT)
    chosen = resolve_placement(SRUN | {"MASTER_ADDR": "node-ib0", "MASTER_PORT": "777"})
    assert (chosen.address, chosen.port) == ("node-ib0", 777)
    # Steps of one job, and two jobs, do not meet at one port.
    other_step = resolve_placement(SRUN | {"SLURM_STEP_ID": "3"})
    other_job = resolve_placement(SRUN | {"SLURM_JOB_ID": "72"})
    assert len({PORT, other_step.port, other_job.port}) == 3
    assert resolve_placement(TORCHRUN).address is None  # torchrun's own variables say it


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_part_of_torchruns_variables_is_refused_by_name(name):
    several = {"CUDA_VISIBLE_DEVICES": "0,1"}  # with one GPU LOCAL_RANK may be missing
    partial = {key: value for key, value in TORCHRUN.items() if key != name} | several
    with pytest.raises(ConfigError, match=f"^{name} missing"):
        resolve_placement(partial)


@pytest.mark.parametrize(
    ("more", "taken"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, True),
        ({"CUDA_VISIBLE_DEVICES": "3"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, False),
        # A pod with all GPUs of its node, of which its one process uses the first.
        ({"CUDA_VISIBLE_DEVICES": "0,1", "LOCAL_WORLD_SIZE": "1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": "2"}, False),
    ],
)
def test_one_process_a_pod_needs_no_local_rank(more, taken):
    environment = {key: value for key, value in TORCHRUN.items() if key != "LOCAL_RANK"} | more
    if not taken:
        with pytest.raises(ConfigError, match=r"^LOCAL_RANK missing"):
            resolve_placement(environment)
        return
    place = resolve_placement(environment)
    assert (place.rank, place.world_size, place.local_rank) == (3, 8, 0)
    assert place.origin == "RANK and WORLD_SIZE, 8 ranks"


@pytest.mark.parametrize(
    "environment",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_SIZE": "2", "PMI_RANK": "0"},
        BATCH | {"OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_several_processes_of_mpirun_are_no_single_runs(environment):
    with pytest.raises(ConfigError, match=r"^mpirun has started 2 processes \(\w+_SIZE\)"):
        resolve_placement(environment)


def test_what_mpi_leaves_in_other_starts_does_not_decide():
    # srun sets MPICH's variables, also in a shell; a wrapper of mpirun may set torchrun's.
    assert resolve_placement(BATCH | {"PMI_SIZE": "8"}).world_size == 1
    assert resolve_placement(SRUN | {"OMPI_COMM_WORLD_SIZE": "8"}).rank == 5
    assert resolve_placement(TORCHRUN | {"OMPI_COMM_WORLD_SIZE": "8"}).rank == 3
    assert resolve_placement({"OMPI_COMM_WORLD_SIZE": "1"}).world_size == 1


def test_the_way_out_of_an_interactive_shell_of_srun_leads_out():
    shell = SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert resolve_placement(shell).world_size == 8
    for environment in (shell, TORCHRUN, TORCHRUN | BATCH):
        unset = re.findall(r"-u (\w+)", how_to_run_alone(environment))
        alone = {key: value for key, value in environment.items() if key not in unset}
        assert resolve_placement(alone).world_size == 1


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"])
def test_a_part_of_slurms_variables_is_refused_by_name(name):
    partial = {key: value for key, value in SRUN.items() if key != name}
    with pytest.raises(ConfigError, match=f"^{name} missing"):
        resolve_placement(partial)


def test_a_step_without_a_list_of_nodes():
    partial = {key: value for key, value in SRUN.items() if not key.endswith("NODELIST")}
    with pytest.raises(ConfigError, match=r"^SLURM_JOB_NODELIST missing"):
        resolve_placement(partial)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (TORCHRUN | {"RANK": "x"}, "RANK='x'"),
        (TORCHRUN | {"RANK": "8"}, "RANK=8 lies outside WORLD_SIZE=8"),
        (TORCHRUN | {"RANK": "-1"}, "RANK=-1"),
        (TORCHRUN | {"LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_RANK=4"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE=9"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT='0'"),
        (SRUN | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8 lies outside SLURM_NTASKS=8"),
        (SRUN | {"SLURM_LOCALID": "6"}, "SLURM_LOCALID=6"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4"),
        (SRUN | {"SLURM_STEP_ID": "two"}, "SLURM_STEP_ID='two'"),
        (SRUN | {"SLURM_STEP_NODELIST": "$(reboot)"}, "reboot"),
        (SRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT='70000'"),
        (SRUN | {"MASTER_ADDR": "localhost", "SLURM_STEP_NUM_NODES": "2"}, "MASTER_ADDR=localhost"),
        # Each task has started a torchrun that knows of itself alone.
        (TORCHRUN | ONE_A_NODE | {"GROUP_WORLD_SIZE": "1"}, "torchrun counts 1 nodes"),
        (TORCHRUN | SRUN | {"WORLD_SIZE": "4"}, "WORLD_SIZE=4 contradicts SLURM_PROCID=5"),
        (TORCHRUN | SRUN, "RANK=3 of WORLD_SIZE=8 contradicts SLURM_PROCID=5"),
    ],
)
def test_contradictions(environment, named):
    with pytest.raises(ConfigError) as refused:
        resolve_placement(environment)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("n0", "n0"),
        ("n[0-1]", "n0"),
        ("n[03,07-09],m1", "n03"),
        ("rack[2-3]n[04,07-09],x1", "rack2n04"),
        ("gpu-a.example.org,gpu-b", "gpu-a.example.org"),
        ("a1,b[2-3]", "a1"),
    ],
)
def test_the_first_host(node_list, first):
    assert first_host(node_list) == first


@pytest.fixture
def visible(monkeypatch):
    """Let torch see a number of GPUs; return those that were made current."""
    chosen: list[str] = []

    def see(count: int) -> list[str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(str(device)))
        return chosen

    return see


def test_the_device(visible):
    made_current = visible(8)
    assert choose_device("cpu", 5).type == "cpu"
    assert made_current == []
    assert str(choose_device("auto", 5)) == str(choose_device("cuda", 5)) == "cuda:5"
    assert made_current == ["cuda:5"] * 2
    with pytest.raises(ConfigError, match="local rank 8 has no CUDA device of its own among 8"):
        choose_device("auto", 8)
    visible(0)
    assert choose_device("auto", 5).type == "cpu"
    with pytest.raises(ConfigError, match="cuda is not available"):
        choose_device("cuda", 0)


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_the_only_visible_gpu_is_the_device_of_any_rank(environment, visible):
    """As with ``srun --gpus-per-task=1``, also where a wrapper exports torchrun's variables."""
    visible(1)
    place = resolve_placement(environment)
    assert place.local_rank == 1
    assert str(choose_device("auto", place.local_rank)) == "cuda:0"


# ---------------------------------------------------------------- the roll


def of_rank(rank: int, *, gpu: str | None = None, **same: str) -> dict[str, object]:
    same = {"torch": "2.14", "number of ranks": "3"} | same
    return {"rank": rank, "same": same, "gpu": gpu, "host": "here"}


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([of_rank(2), of_rank(0), of_rank(1)], None),
        ([of_rank(n, gpu=f"GPU-{n}") for n in range(3)], None),
        ([of_rank(0), of_rank(1), of_rank(1)], "rank 1 is there 2 times and rank 2 is missing"),
        ([of_rank(0), of_rank(1), of_rank(2, torch="2.13")], "rank 2 has torch 2.13 instead of"),
        ([of_rank(0), of_rank(1, lr="1"), of_rank(2)], "rank 1 has lr 1 instead of unknown"),
        ([of_rank(0, lr="1"), of_rank(1), of_rank(2)], "(and 1 more ranks differ)"),
        ([of_rank(n, gpu=f"GPU-{n // 2}") for n in range(3)], "ranks 0 and 1 share GPU GPU-0"),
    ],
)
def test_verdicts_on_the_ranks(ranks, named):
    found = verdict(ranks, 3)
    assert (found is None) if named is None else (named in found)


def test_the_missing_are_named():
    assert _missing([2, 0], 4) == "ranks 1, 3 are missing"
    assert _missing([0], 2) == "rank 1 is missing"
    assert (
        _missing(range(0, 64, 2), 64) == "ranks 1, 3, 5, 7, 9, 11, 13, 15 and 24 more are missing"
    )


_RANK = """
import json, sys
from rebias_dist.errors import RebiasError
from rebias_dist.ranks.process_group import choose_device, process_group, resolve_placement
place = resolve_placement()
try:
    with process_group(place, choose_device("cpu", 0), 2.0, json.loads(sys.argv[1])) as consensus:
        print(json.dumps(consensus.gather(place.rank)))
except RebiasError as error:
    print(type(error).__name__, error)
"""


def started(environments: list[dict[str, str]], settings: list[dict[str, str]]) -> list[str]:
    """Start a process in each environment and return what each prints."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("SLURM_") and key not in TORCHRUN
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, json.dumps(of_one)],
            env={**clean, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for environment, of_one in zip(environments, settings, strict=True)
    ]
    try:
        return [process.communicate(timeout=1000)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()


def tasks(job: int, ranks: list[int], world: int) -> list[dict[str, str]]:
    """Return the environments of srun's tasks, on a port that belongs to this test process."""
    return [
        SRUN
        | {"SLURM_JOB_ID": str(job * 20_000 + os.getpid() % 15_000)}
        | {"SLURM_NTASKS": str(world), "SLURM_STEP_NUM_TASKS": str(world)}
        | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        for rank in ranks
    ]


def test_tasks_of_srun_join():
    said = started(tasks(1, [1, 0], 2), [{"lr": "1"}] * 2)
    # The gloo of torch 2.9 prints that the ranks are connected.
    assert [text.splitlines()[-1] for text in said] == ["[0, 1]"] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_says_at_once_what_it_takes_itself_for(rank):
    (environment,) = tasks(4, [rank], 2)
    program = subprocess.Popen(
        [sys.executable, "-c", _RANK, "{}"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        said = program.stderr.readline()
        while "waits for" not in said:
            assert said, "it ended without a word"
            said = program.stderr.readline()
    finally:
        program.send_signal(signal.SIGKILL)
        program.communicate()
    assert f"rank {rank} of 2 (srun, 2 ranks on localhost in SLURM job" in said
    assert "env -u SLURM_STEP_ID -u SLURM_PROCID COMMAND" in said


def test_a_rank_with_another_configuration_is_named_by_all():
    settings = [{"optimizer.lr": "0.1"}, {"optimizer.lr": "0.1"}, {"optimizer.lr": "0.2"}]
    for said in started(tasks(2, [0, 1, 2], 3), settings):
        assert said.startswith("ConfigError rank 2 has optimizer.lr 0.2 instead of 0.1")


def test_a_rank_that_is_there_twice_is_named_by_all():
    for said in started(tasks(3, [0, 1, 1], 3), [{}] * 3):
        assert said.startswith("ConfigError rank 1 is there 2 times and rank 2 is missing")
