"""The examples run as their first lines say."""

import importlib
import re

import pytest
import torch
import yaml

from launch.sweep.grid import plan_cells, read_sweep
from rebias_dist.config.files import validate
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.train import main
from tests import ROOT
from tests.system.test_train import torchrun

EXAMPLES = ROOT / "examples"


def losses(name, ranks, words, folder):
    done = torchrun(ranks, str(EXAMPLES / name), cwd=folder, module=None)
    assert done.returncode == 0, done.stderr
    found = [float(value) for value in re.findall(rf"{words} loss (\d+\.\d+)", done.stdout)]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*_loop.py")), ids=lambda path: path.name)
def test_a_loop_has_under_sixty_lines(script):
    assert len(script.read_text().splitlines()) < 60


def test_hsic_in_a_loop_learns_on_two_ranks(tmp_path):
    found = losses("hsic_loop.py", 2, "f", tmp_path)
    assert found[-1] < found[0]


@pytest.mark.slow
def test_the_contrastive_loss_of_a_loop_is_the_same_on_any_number_of_ranks(tmp_path):
    """Three ranks have 22, 21 and 21 of the 64 rows."""
    alone = losses("own_loop.py", 1, "contrastive", tmp_path)
    assert alone[-1] < alone[0]
    assert losses("own_loop.py", 3, "contrastive", tmp_path) == pytest.approx(alone, rel=1e-4)


def test_frozen_heads_stay_as_they_are_drawn_and_f_learns(small_run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    small_run["method"] = {"name": "frozen_heads:FrozenRUBi"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_run))
    for steps in (1, 3):
        main(validate({**small_run, "name": f"steps-{steps}", "max_steps": steps}))
    words = ["--config", "small.yaml", "--name", "ranks-2", "--max-steps", "3"]
    done = torchrun(2, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, third, on_two = (
        load_choice(tmp_path / "runs" / name / "checkpoints", "last")["players"]["f"]
        for name in ("steps-1", "steps-3", "ranks-2")
    )
    assert len(first["heads"]) == 2
    for key, tensor in first["heads"].items():
        assert torch.equal(third["heads"][key], tensor)
        assert torch.equal(on_two["heads"][key], tensor)
    learned = [key for key, tensor in first["network"].items() if tensor.is_floating_point()]
    assert not all(torch.equal(third["network"][key], first["network"][key]) for key in learned)
    for key in learned:
        torch.testing.assert_close(on_two["network"][key], third["network"][key])


def test_both_kinds_of_heads_are_frozen(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("FrozenRUBi", "FrozenLearnedMixin"):
        own = getattr(importlib.import_module("frozen_heads"), name)
        heads = own.heads(object.__new__(own), 7, [6], 5)
        assert [parameter.requires_grad for parameter in heads.parameters()] == [False, False]


def test_the_sweep_of_frozen_heads_differs_from_that_of_the_results_in_the_heads_alone(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    frozen = plan_cells(read_sweep(str(EXAMPLES / "frozen_heads.yaml")), "a test")
    trained = plan_cells(read_sweep("biased_mnist/sweeps/results"), "a test")
    assert len(frozen) == 12
    names = {"FrozenRUBi": "rubi", "FrozenLearnedMixin": "learned_mixin"}

    def settings(cell, name=None):
        values = cell.config.model_dump(exclude={"name"})
        return {**values, "method": {**values["method"], "name": name or values["method"]["name"]}}

    known = [settings(cell) for cell in trained]
    for cell in frozen:
        assert settings(cell, names[cell.config.method.name.partition(":")[2]]) in known
