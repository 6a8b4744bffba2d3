"""A run that max_steps has ended may go on, and is then the run that was never ended."""

import pytest

from rebias_dist.config.files import validate
from rebias_dist.runs.checkpoint import choose, load_choice
from rebias_dist.train import main
from tests.faults.test_resume_exactly import _digest


@pytest.fixture
def values(small_run):
    """JTT: f trains for 8 steps, begins anew and trains for 16, worse with this learning rate."""
    return {
        **small_run,
        "method": {"name": "jtt", "f_pretrain_epochs": 1},
        "optimizer": {"lr": 0.02},
        "epochs": 2,
        "evaluate": {"every_epochs": 1},
        "log": {"to": []},
    }


def state(folder) -> dict[str, str]:
    """The digest of each part of the last checkpoint, but for the name and max_steps."""
    found = load_choice(folder, "last")
    return {key: _digest(value) for key, value in found.items() if key != "config"}


def test_the_best_checkpoint_is_that_of_the_run_that_was_never_ended(values, tmp_path):
    main(validate({**values, "name": "whole"}))
    whole, folder = tmp_path / "runs/whole/checkpoints", tmp_path / "runs/a/checkpoints"
    best = load_choice(whole, "best")["step"]
    assert best in (16, 24)
    # In pretraining, at its end, in the middle of an epoch, and after the first of the game.
    for step, chosen in ((5, 5), (8, 8), (11, 11), (16, 16), (21, 16)):
        found = main(validate({**values, "name": "a", "max_steps": step}))
        assert found["checkpoints"]["last"]["step"] == step
        assert found["checkpoints"]["best"]["step"] == choose(folder, "best") == chosen
    main(validate({**values, "name": "a"}))
    assert state(folder) == state(whole)
    assert choose(folder, "best") == best


def test_a_run_that_is_killed_in_its_test_does_not_begin_the_next_epoch(values, tmp_path):
    """The next one begins with the turn of the method, which gives f its initial weights."""
    run = tmp_path / "runs/a"
    ended = validate({**values, "name": "a", "max_steps": 8})
    found, before = main(ended), state(run / "checkpoints")
    (run / "results.json").unlink()
    assert main(ended) == found
    assert state(run / "checkpoints") == before
