"""What a rank says of an error: a lost peer, or a fault that has nothing to do with the peers."""

import json
import socket

import pytest
import torch
from torch import nn
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from rebias_dist import assemble
from rebias_dist.config.files import validate
from rebias_dist.data.splits import open_data
from rebias_dist.errors import RankError
from rebias_dist.ranks import process_group
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.faults import Whereabouts
from rebias_dist.step import compilation
from rebias_dist.step.precision import Precision
from rebias_dist.train import main

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, "
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
# As torch and NCCL print them.
ENDED = [
    RuntimeError(GLOO + "pair.cc:547] Connection closed by peer [10.0.0.2]:4711"),
    RuntimeError(GLOO + "pair.cc:434] Read error [10.0.0.2]:4711: Connection reset by peer"),
    RuntimeError(GLOO + "buffer.cc:74] Timed out waiting 1800000ms for recv operation"),
    RuntimeError("Application timeout caused pair closure"),
    DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote"),
    DistStoreError("wait timeout after 600000ms, keys: /ranks/0"),
    DistBackendError(
        NCCL + "remote process exited or there was a network error, NCCL version 2.28.8\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer n2"
    ),
    DistBackendError(
        NCCL + "internal error, NCCL version 2.27.5\nncclInternalError: Internal check failed.\n"
        "Last error:\nNet : Connection closed by remote peer n2<43236>"
    ),
    DistBackendError("NCCL communicator was aborted on rank 1."),
    DistBackendError(
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, "
        "OpType=ALLREDUCE) ran for 600000 milliseconds before timing out."
    ),
]
CUDA_FAILURE = (
    NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
    "Cuda failure 2 'out of memory'"
)
OWN = [
    (DistBackendError(CUDA_FAILURE), ["Cuda failure 2 'out of memory'", "a smaller micro_batch"]),
    (
        DistBackendError(
            NCCL + "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version "
            "2.27.5\nncclSystemError: System call (e.g. socket, malloc) or external library call "
            "failed or device error. It can be also caused by unexpected exit of a remote peer.\n"
            "Last error:\nError: failed to extend /dev/shm/nccl-X to 33030532 bytes"
        ),
        ["unhandled system error", "(Error: failed to extend /dev/shm/nccl-X"],
    ),
    (
        DistBackendError(
            NCCL + "invalid usage, NCCL version 2.27.5\nncclInvalidUsage: This usually reflects "
            "invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and "
            "rank 0 both on CUDA device 4000"
        ),
        ["(Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000)"],
    ),
    (
        RuntimeError(GLOO + "pair.cc:456] op.preamble.length <= op.nbytes. 16 vs 8"),
        ["RuntimeError: [/pytorch", "16 vs 8"],
    ),
    (RuntimeError("Tensors must be CUDA and dense for NCCL"), ["Tensors must be CUDA"]),
    (RuntimeError("CUDA error: out of memory"), ["a smaller micro_batch needs less"]),
]


@pytest.mark.parametrize("error", ENDED, ids=str)
def test_a_peer_that_ended_or_does_not_answer(error, capsys):
    said = str(Whereabouts(1, step=7).fault(error))
    assert said.startswith("rank 1, step 7: another rank is lost; ")
    assert "\n" not in said
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("error", "named"), OWN, ids=str)
def test_a_fault_of_a_transport_is_not_called_the_loss_of_a_peer(error, named, capsys):
    said = str(Whereabouts(1, step=7).fault(error))
    assert said.startswith(f"rank 1, step 7: {type(error).__name__}: ")
    assert "is lost" not in said
    assert all(part in said for part in named), said
    assert "\n" not in said
    assert str(error).splitlines()[-1] in capsys.readouterr().err  # the traceback


def test_a_group_that_nccl_cannot_form_is_not_called_a_missing_rank(monkeypatch):
    def fail(*arguments, **keywords):
        raise DistBackendError(CUDA_FAILURE)

    monkeypatch.setattr(process_group, "call_the_roll", lambda *arguments: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = process_group.Placement(0, 2, 0, address="127.0.0.1", port=port)
    group = process_group.process_group(place, torch.device("cpu"))
    with pytest.raises(RankError, match=r"^rank 0, start: NCCL .*'out of memory'\)$"), group:
        pass


# ---------------------------------------------------------------------------- device: cpu


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """Two GPUs are there, and whoever touches them fails."""

    def touched(*arguments, **keywords):
        raise AssertionError("a run on the CPU touches a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_lazy_init", touched)
    monkeypatch.setattr(torch.Tensor, "pin_memory", touched)
    monkeypatch.setattr(torch.cuda, "set_device", touched)


def test_a_run_on_the_cpu_touches_no_gpu_that_is_there(small_run, beside_a_gpu, tmp_path):
    values = {**small_run, "name": "a", "device": "cpu", "max_steps": 5, "deterministic": True}
    values |= {"log": {"profile": 1}, "radius": {"f": "median", "g": "median"}}
    values["data"] = {**small_run["data"], "workers": 1}
    try:
        main(validate(values))
    finally:
        torch.use_deterministic_algorithms(False)
    state = json.loads((tmp_path / "runs/a/state.json").read_text())
    assert state["status"] == "finished"
    assert list((tmp_path / "runs/a/profile").iterdir())


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_micro_batches_are_pinned_for_a_run_on_a_gpu(small_run, monkeypatch, kind):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(0) or tensor)
    config = validate(small_run)
    train = open_data(config, assemble.data_root(config)).train
    loader = assemble.build_loader(config, train, Consensus(), torch.device(kind, 0))
    batches = next(loader.epoch(0))
    # Images, labels, bias and ids of each micro-batch.
    assert len(pinned) == (4 * len(batches) if kind == "cuda" else 0)


def test_a_trial_of_the_compiler_touches_no_gpu_that_is_there(beside_a_gpu, monkeypatch):
    monkeypatch.setattr(compilation, "compiled", lambda network: network)
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout())
    before = torch.get_rng_state()
    precision = Precision("float32", torch.device("cpu"))
    compilation.check_compilation("f", network, (2, 3, 4, 4), precision)
    assert torch.equal(torch.get_rng_state(), before)
