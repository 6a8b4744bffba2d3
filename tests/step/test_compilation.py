"""Compiled networks: the same run to rounding, on any layout, with the same checkpoints."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from rebias_dist import models
from rebias_dist.commands.export import export_run
from rebias_dist.config.files import validate
from rebias_dist.config.schema import OptimizerConfig
from rebias_dist.errors import ConfigError
from rebias_dist.evaluation.loaded_run import load_run
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision
from rebias_dist.step.randomness import keyed
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks
from tests.faults.failpoints import Killed, failpoint
from tests.faults.test_resume_exactly import fingerprint
from tests.system.test_train import torchrun, train

STEPS = 6
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile needs a C++ compiler",
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> str:
    """A folder for what inductor compiles, shared by the tests, for each compilation is slow."""
    return str(tmp_path_factory.mktemp("inductor"))


def _main(values: dict, kernels: str, killed_at: int | None = None) -> bool:
    """Run, or resume, in a process of its own; return whether it was stopped by the failpoint."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = kernels

    def kill() -> None:
        raise Killed

    try:
        with failpoint("between g and f", killed_at or 0, kill):
            main(validate(values))
    except Killed:
        return True
    return False


def _players(values: dict) -> dict:
    state = load_choice(Path(values["runs_dir"], values["name"], "checkpoints"), "last")
    assert state["step"] == STEPS
    return state["players"]


def _worst(found: dict, expected: dict) -> float:
    """Largest difference of the weights and buffers, as a part of the tensor's largest entry."""
    worst = 0.0
    assert found.keys() == expected.keys()
    for name, player in expected.items():
        assert found[name]["network"].keys() == player["network"].keys()
        for key, tensor in player["network"].items():
            scale = max(float(tensor.double().abs().max()), 1e-12)
            difference = (found[name]["network"][key] - tensor).double().abs().max()
            worst = max(worst, float(difference) / scale)
    return worst


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_agree_over_ranks_restarts_and_with_eager_ones(small_run, kernels, tmp_path):
    f = {"name": "simple_convnet", "kernel_size": 3, "width": 0.25, "dropout": 0.3}
    common = {**small_run, "f": f, "max_steps": STEPS, "checkpoint": {"every_steps": 2}}
    cases = {
        name: {**common, "name": name, "compile": name != "eager"}
        for name in ("eager", "one", "two", "killed")
    }
    for name, ranks in (("eager", 1), ("one", 1), ("two", 2)):
        assert not any(run_ranks(ranks, _main, cases[name], kernels, timeout=1000))
    assert run_ranks(1, _main, cases["killed"], kernels, 5, timeout=1000) == [True]
    assert run_ranks(1, _main, cases["killed"], kernels, timeout=1000) == [False]

    runs = tmp_path / "runs"
    assert fingerprint(runs / "killed") == fingerprint(runs / "one")
    one = _players(cases["one"])
    layout, eager = _worst(_players(cases["two"]), one), _worst(_players(cases["eager"]), one)
    print(f"after {STEPS} steps in float64: 2 ranks {layout:.1e}, eager {eager:.1e}")
    assert layout <= 1e-9
    assert eager <= 1e-9

    # Whatever reads the run later meets an ordinary network.
    exported = export_run(runs / "one", tmp_path / "exported", "last")
    assert exported <= 1e-9
    loaded = load_run(runs / "one", "last")
    assert loaded.f is not None
    assert type(loaded.f) is type(models.build("simple_convnet", num_classes=10, kernel_size=3))

    # It may go on without compiling, if that is said.
    longer = {**cases["one"], "compile": False, "max_steps": STEPS + 2}
    with pytest.raises(ConfigError, match="compile: True → False"):
        main(validate(longer))
    main(validate(longer), overrides=["compile"])
    assert load_choice(runs / "one" / "checkpoints", "last")["step"] == STEPS + 2


def _player(compile: bool) -> Player:
    torch.manual_seed(0)
    network = models.build(
        "simple_convnet", num_classes=5, kernel_size=3, width=0.25, dropout=0.4
    ).to(memory_format=torch.channels_last)
    precision = Precision("float32", CPU)
    return Player(
        "f", network, optimizer=OptimizerConfig(), precision=precision, compile=compile
    )  # fmt: skip


@needs_compiler
@pytest.mark.slow
def test_both_passes_of_an_update_give_the_same_bits(kernels, monkeypatch):
    """Also under dropout, and from a single graph; batches of evaluation need no other."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", kernels)
    torch.compiler.reset()
    counters.clear()
    images = torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    plain, compiled = _player(compile=False), _player(compile=True)
    worst = 0.0
    for step in range(3):
        found = []
        for player in (plain, compiled):
            before = [buffer.clone() for buffer in player.network.buffers()]
            with keyed(CPU, 0, step):
                first = player.forward(images, gradient=False)
            with keyed(CPU, 0, step):
                second = player.forward(images, gradient=True)
            with keyed(CPU, 1, step):
                other = player.forward(images, gradient=False)
            assert not first.logits.requires_grad
            assert not first.features.requires_grad
            assert torch.equal(first.logits, second.logits)
            assert torch.equal(first.features, second.features)
            assert torch.equal(first.features, other.features)
            assert not torch.equal(first.logits, other.logits)  # other masks
            assert all(map(torch.equal, player.network.buffers(), before))
            loss = second.logits.square().mean() + second.features.mean()
            player.backward(loss)
            player.take_step(1)
            assert not any(map(torch.equal, player.network.buffers(), before))
            found.append(second.logits.detach())
        worst = max(worst, float((found[0] - found[1]).abs().max() / found[0].abs().max()))
    print(f"float32 logits over three steps differ by {worst:.1e}")
    assert worst <= 1e-4
    compiled.network.eval()
    for samples in (5, 2, 1):
        compiled.network(images[:samples])
    assert counters["stats"]["unique_graphs"] == 1
    assert plain.state_dict()["network"].keys() == compiled.state_dict()["network"].keys()
    for mine, theirs in zip(compiled.network.buffers(), plain.network.buffers(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_missing_compiler_is_one_line_before_the_training(
    small_run, tmp_path, monkeypatch, ranks
):
    import yaml

    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({**small_run, "compile": True}))
    words = ("--config", str(config), "--name", "a")
    done = train(*words, cwd=tmp_path) if ranks == 1 else torchrun(2, *words, cwd=tmp_path)
    assert done.returncode == (2 if ranks == 1 else 1)
    lines = [line for line in done.stderr.splitlines() if "compile: true" in line]
    assert len(lines) == 1, done.stderr[-3000:]
    assert "No working C++ compiler" in lines[0]
    assert "set compile: false" in lines[0]
    assert not (tmp_path / "runs" / "a" / "metrics.jsonl").exists()
