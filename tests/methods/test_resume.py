"""Every method, stopped in an epoch and resumed, arrives at the same bits."""

from pathlib import Path

import pytest
import torch

from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Output
from rebias_dist.methods.options import options_class
from rebias_dist.methods.registry import METHODS
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.step.minimax import Minimax
from rebias_dist.train import main
from tests.faults.test_resume_exactly import _digest

NEW = sorted(METHODS.keys() - {"vanilla", "biased", "rubi", "learned_mixin", "rebias"})
SPLITS = ("train", "selection", "biased", "unbiased", "rho0")
STEPS, STOPS = 18, (5, 11)  # an epoch has eight steps


def settings(small_run: dict, name: str) -> dict:
    method = {"name": name}
    if METHODS[name].fixed_g:
        method["g_pretrain_epochs"] = 1
    values = {**small_run, "method": method, "optimizer": {"name": "adam"}, "max_steps": STEPS}
    if METHODS[name].views:
        values["data"] = {**small_run["data"], "views": 2, "augment": {"rotation": 10.0}}
    return values


def fingerprint(values: dict, name: str) -> tuple[str, dict]:
    state = load_choice(Path(values["runs_dir"]) / name / "checkpoints", "last")
    parts = {key: state[key] for key in ("players", "method", "begun_epoch", "step", "epoch")}
    return _digest(parts), state


_LONG = ("softcon", "flac")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _LONG else n for n in NEW]
)
def test_stopped_in_an_epoch_and_resumed(name, small_run):
    values = settings(small_run, name)
    main(validate({**values, "name": "through"}))
    for steps in (*STOPS, STEPS):
        main(validate({**values, "name": "stopped", "max_steps": steps}))
    through, state = fingerprint(values, "through")
    stopped, _ = fingerprint(values, "stopped")
    assert stopped == through
    assert state["step"] == STEPS
    if name in ("lff", "jtt", "group_dro"):
        assert state["method"]


def test_jtt_trains_from_its_initial_weights_again(small_run):
    values = settings(small_run, "jtt")
    for name, steps in (("first", 1), ("second", 9)):
        main(validate({**values, "name": name, "max_steps": steps, "data": small_run["data"]}))
    first, second = (fingerprint(values, name)[1] for name in ("first", "second"))
    # The epoch of the first training has 8 steps. Adam moves a weight by at most its rate a step,
    # so both are one step away from the initial weights.
    rate = 1e-3
    for key, weights in first["players"]["f"]["network"].items():
        if weights.dtype == torch.float64 and "running" not in key:
            other = second["players"]["f"]["network"][key]
            assert float((weights - other).abs().max()) <= 2.1 * rate
    assert not first["method"]["found"]
    assert second["method"]["found"]
    assert 0 < int(second["method"]["errors"].sum()) < len(second["method"]["errors"])


def test_a_state_of_other_data_is_refused(small_run):
    from rebias_dist import methods
    from rebias_dist.methods.base import TrainingSet

    def table(n: int):
        method = methods.build(options_class("jtt")(name="jtt"))
        labels = torch.zeros(n, dtype=torch.int64)
        method.prepare(TrainingSet(labels, labels, 2, (3, 8, 8)), {})
        return method

    with pytest.raises(ConfigError, match="start another run"):
        table(7).load_state(table(8).state())


def test_jtt_finds_its_error_set_late_and_takes_another_weight(small_run):
    """Overridden options take effect: fewer epochs of the first training, another weight."""
    values = {**settings(small_run, "jtt"), "name": "a"}
    long = {**values, "method": {"name": "jtt", "f_pretrain_epochs": 3}}
    main(validate({**long, "max_steps": 10}))
    main(validate({**values, "max_steps": 18}), "auto", ["method.f_pretrain_epochs"])
    _, state = fingerprint(values, "a")
    assert state["method"]["found"]
    assert 0 < int(state["method"]["errors"].sum()) < len(state["method"]["errors"])


@pytest.mark.parametrize("name", ["lff", "jtt", "group_dro"])
def test_a_table_of_other_training_data_is_refused(name, small_run):
    values = {**settings(small_run, name), "name": "a"}
    main(validate({**values, "max_steps": 10}))
    other = {**values, "data": {**values["data"], "seed": 5}}
    keys = ["data.seed", *(f"manifest.{split}" for split in SPLITS)]
    with pytest.raises(ConfigError, match="is of other training data; start another run"):
        main(validate(other), "auto", keys)


@pytest.mark.parametrize("name", ["lff", "group_dro"])
def test_a_skipped_step_leaves_no_trace_in_the_state(name, small_run, monkeypatch):
    forward = Minimax._forward

    def broken(self, player, batch, step, update, *, gradient):
        output = forward(self, player, batch, step, update, gradient=gradient)
        if step == 3 and player.name == "f":
            return Output(output.logits * float("inf"), output.features)
        return output

    monkeypatch.setattr(Minimax, "_forward", broken)
    values = {**settings(small_run, name), "name": "a", "faults": {"non_finite": "skip"}}
    main(validate({**values, "max_steps": 6}))
    _, state = fingerprint(values, "a")
    assert all(x.double().isfinite().all() for x in state["method"].values())
