"""``f.checkpoint`` and ``g.0.checkpoint``: networks that begin with the weights of another run."""

import re
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError, DataError
from rebias_dist.methods.base import Engine, Method
from rebias_dist.methods.registry import Facts
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks


def weights(values: dict, name: str, network: str) -> dict[str, torch.Tensor]:
    folder = Path(values["runs_dir"]) / name / "checkpoints"
    return load_choice(folder, "last")["players"][network]["network"]


def train(values: dict, name: str, method: dict, **more) -> None:
    main(validate({**values, **more, "name": name, "method": method}))


def with_checkpoint(values: dict, run: str, **changes) -> dict:
    return {"g": [{**values["g"][0], "checkpoint": f"{values['runs_dir']}/{run}", **changes}]}


def test_a_fixed_g_keeps_the_weights_of_the_other_run_through_a_stop(small_run):
    values = {**small_run, "max_steps": 12}
    train(values, "colour", {"name": "biased"})
    taken = with_checkpoint(values, "colour")
    train(values, "through", {"name": "flac"}, **taken)
    train({**values, "max_steps": 5}, "stopped", {"name": "flac"}, **taken)
    # A resumed run does not need the other one any more.
    (Path(values["runs_dir"]) / "colour").rename(Path(values["runs_dir"]) / "colour-moved")
    train(values, "stopped", {"name": "flac"}, **taken)
    learned = weights(values, "colour-moved", "g0")
    for run in ("through", "stopped"):
        for key, found in weights(values, run, "g0").items():
            assert torch.equal(found, learned[key]), key
    for key, found in weights(values, "stopped", "f").items():
        assert torch.equal(found, weights(values, "through", "f")[key]), key


def test_a_run_with_one_network_gives_it_to_any(small_run):
    values = {**small_run, "max_steps": 3}
    train(values, "plain", {"name": "vanilla"})
    shape = {"kernel_size": 3}
    train(values, "badd", {"name": "badd"}, **with_checkpoint(values, "plain", **shape))
    for key, found in weights(values, "badd", "g0").items():
        assert torch.equal(found, weights(values, "plain", "f")[key]), key


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_jtt_begins_again_from_weights_that_have_changed_or_vanished(small_run, tmp_path, ranks):
    untested = {"every_epochs": 3, "final": "none"}
    values = {**small_run, "max_steps": 3, "evaluate": untested}
    train(values, "one", {"name": "vanilla"})
    train(values, "other", {"name": "vanilla"}, seed=7)
    file = tmp_path / "weights.pt"
    values["f"] = {**values["f"], "pretrained": str(file)}
    jtt = {"name": "jtt"}
    torch.save(weights(values, "one", "f"), file)
    # An epoch has eight steps; then f begins again.
    train({**values, "max_steps": 10}, "through", jtt)
    train({**values, "max_steps": 5}, "stopped", jtt)
    if ranks == 1:
        torch.save(weights(values, "other", "f"), file)
        train({**values, "max_steps": 10}, "stopped", jtt)
    else:
        file.unlink()
        run_ranks(2, train, {**values, "max_steps": 10}, "stopped", jtt, timeout=1000)
    for key, found in weights(values, "stopped", "f").items():
        assert torch.allclose(found, weights(values, "through", "f")[key], rtol=0, atol=1e-9), key


class Again(Method):
    facts = Facts(has_g=False)
    file: ClassVar[Path]

    def after_step(self, step: int, engine: Engine) -> None:
        self.file.unlink()
        engine.restart("f")


def test_a_method_may_begin_again_after_a_step_too(small_run, tmp_path, monkeypatch):
    values = {**small_run, "max_steps": 1}
    train(values, "one", {"name": "vanilla"})
    initial, file = weights(values, "one", "f"), tmp_path / "weights.pt"
    torch.save(initial, file)
    monkeypatch.setattr(Again, "file", file, raising=False)
    values["f"] = {**values["f"], "pretrained": str(file)}
    train(values, "again", {"name": f"{__name__}:Again"})
    for key, found in weights(values, "again", "f").items():
        assert torch.equal(found, initial[key]), key


def test_a_damaged_copy_of_the_initial_weights_is_refused(small_run, tmp_path):
    untested = {"every_epochs": 3, "final": "none"}
    values = {**small_run, "max_steps": 5, "evaluate": untested}
    train(values, "one", {"name": "vanilla"})
    file, jtt = tmp_path / "weights.pt", {"name": "jtt"}
    values["f"] = {**values["f"], "pretrained": str(file)}
    torch.save(weights(values, "one", "f"), file)
    train(values, "jtt", jtt)
    initial = Path(values["runs_dir"]) / "jtt/initial"
    (state,) = initial.rglob("state.pt")
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"initial/step-000000000/state\.pt: has"):
        train({**values, "max_steps": 10}, "jtt", jtt)
    # A run of an earlier version has no copy, and reads the file again.
    shutil.rmtree(initial)
    file.rename(tmp_path / "moved.pt")
    with pytest.raises(ConfigError, match=r"weights\.pt cannot be read"):
        train({**values, "max_steps": 10}, "jtt", jtt)
    (tmp_path / "moved.pt").rename(file)
    train({**values, "max_steps": 10}, "jtt", jtt)


def _refused(values: dict, runs: list[tuple[dict, str]]) -> list[tuple[int, str]]:
    found = []
    for number, (more, method) in enumerate(runs):
        try:
            train(values, f"refused{number}", {"name": method}, **more)
        except ConfigError as error:
            found.append((error.exit_code, str(error)))
    return found


def test_what_does_not_fit_is_one_line_on_all_ranks(small_run):
    values = {**small_run, "max_steps": 2}
    train(values, "plain", {"name": "vanilla"})
    train(values, "both", {"name": "rebias"})
    of_f = {"f": {**values["f"], "checkpoint": f"{values['runs_dir']}/nothing"}}
    runs = [
        (with_checkpoint(values, "missing"), "flac"),
        (with_checkpoint(values, "plain"), "flac"),
        (of_f, "vanilla"),
        ({"g": [values["g"][0], with_checkpoint(values, "both")["g"][0]]}, "rebias"),
    ]
    messages = [
        r"g\.0\.checkpoint: .*missing is no run with a checkpoint",
        r"g\.0\.checkpoint .*plain.*",
        r"f\.checkpoint: .*nothing is no run with a checkpoint",
        r"g\.1\.checkpoint: .*both has no network g1; it has f, g0",
    ]
    first, second = run_ranks(2, _refused, values, runs, timeout=1000)
    assert first == second
    assert len(first) == len(messages)
    for (code, line), message in zip(first, messages, strict=True):
        print(line)
        assert code == 2
        assert re.search(message, line)
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": {"name": "flac"}}, "method.g_pretrain_epochs: flac keeps g fixed"),
        (
            {"data": {"views": 2, "augment": {"rotation": 9.0}}},
            "data.views: rebias uses one view of a sample; set it to 1",
        ),
        ({"method": {"name": "group_dro", "q": 0.5}}, "method.q: no such key"),
        ({"method": {"name": "jtt", "hsic": "biased"}}, "method.hsic: jtt does not use it"),
        ({"method": {"name": "lff", "g_pretrain_epochs": -1}}, "method.g_pretrain_epochs: -1"),
        ({"method": {"name": "end", "g_pretrain_epochs": 2}}, "method.g_pretrain_epochs: end"),
    ],
)
def test_methods_and_networks_that_do_not_fit(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(values)
