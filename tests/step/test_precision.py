"""What a precision sets in torch, when, and that it is part of a run's identity."""

import socket
import subprocess
import sys

import pytest
import torch

from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError, RankError
from rebias_dist.objectives import hsic
from rebias_dist.objectives.full_precision import full_precision
from rebias_dist.ranks import process_group
from rebias_dist.step.precision import set_products
from rebias_dist.train import main

KINDS = ("float32", "tf32", "bf16", "fp16", "float64")


@pytest.fixture(autouse=True)
def _settings():
    """Put torch's settings back, which belong to the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.fp32_precision = "none"
    set_products("float32")


def found() -> dict[str, object]:
    """Return the settings of float32 products, all that torch or a program may ask for."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    new = (cuda, cudnn, cudnn.conv, cudnn.rnn, torch.backends.mkldnn.matmul)
    return {
        "new": {part.fp32_precision for part in new},
        "old": {cuda.allow_tf32, cudnn.allow_tf32},
        "matmul": torch.get_float32_matmul_precision(),
    }


IEEE = {"new": {"ieee"}, "old": {False}, "matmul": "highest"}
TF32 = {"new": {"tf32"}, "old": {True}, "matmul": "high"}


@pytest.mark.parametrize("everywhere", ["none", "tf32", "ieee"])
def test_only_tf32_allows_it_whatever_was_set_before(everywhere):
    """The older settings can be read too: torch raises if they and the newer ones differ."""
    for kind in (*KINDS, *reversed(KINDS)):
        torch.backends.fp32_precision = everywhere
        set_products(kind)
        assert found() == (TF32 if kind == "tf32" else IEEE), kind


def test_an_environment_that_asks_for_tf32_does_not_make_float32_so(monkeypatch):
    """NVIDIA's containers set this variable."""
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    ask = "torch.backends.cuda.matmul.fp32_precision"
    program = f"import torch; print({ask}); from rebias_dist.step.precision import set_products; "
    program += f"set_products('float32'); print({ask})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["tf32", "ieee"], done.stderr


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_objectives_are_ieee_in_a_run_in_tf32(kind):
    set_products("tf32")
    cuda = kind == "cuda"
    products = (torch.backends.cuda if cuda else torch.backends.mkldnn).matmul
    with full_precision(torch.device(kind)):
        assert products.fp32_precision == "ieee"
    assert found() == TF32


def test_hsic_has_the_same_bits_in_tf32():
    x, y = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0)).unbind()
    values = []
    for kind in ("float32", "tf32"):
        set_products(kind)
        values.append(hsic(x, y, 1.0, 1.0))
    assert torch.equal(*values)


def test_the_process_group_is_made_after_all_that_it_depends_on(small_run, monkeypatch):
    """ProcessGroupNCCL asks in its constructor whether torch is deterministic."""
    seen = []

    def make_group(*arguments, **keywords):
        filled = torch.utils.deterministic.fill_uninitialized_memory
        seen.append((torch.are_deterministic_algorithms_enabled(), filled, found()))
        raise RuntimeError("seen")

    monkeypatch.setattr(process_group, "call_the_roll", lambda *arguments: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", make_group)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    there = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**there, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    for deterministic in (False, True):
        wanted = {"deterministic": deterministic, "precision": "tf32", "device": "cpu"}
        with pytest.raises(RankError, match="seen"):
            main(validate({**small_run, **wanted}))
    assert seen == [(False, True, TF32), (True, False, TF32)]


def test_a_run_in_float32_does_not_go_on_in_tf32_unasked(small_run):
    run = {**small_run, "name": "a", "max_steps": 1, "precision": "float32"}
    run["evaluate"] = {"final": "none"}
    main(validate(run))
    other = validate({**run, "precision": "tf32", "max_steps": 2})
    with pytest.raises(ConfigError, match="precision: 'float32' → 'tf32'"):
        main(other)
    main(other, overrides=["precision"])
