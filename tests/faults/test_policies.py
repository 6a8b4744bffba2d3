"""What the ranks decide together: values that are not finite, crash loops, changed runs."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from launch.local.attempt import newest_checkpoint
from rebias_dist.config.files import parse_yaml, validate
from rebias_dist.errors import (
    ConfigError,
    CrashLoopError,
    DataError,
    InterruptedRun,
    NonFiniteError,
)
from rebias_dist.runs import checkpoint
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks
from tests.faults.failpoints import Killed, failpoint
from tests.faults.test_resume_exactly import fingerprint, losses, settings


class Poison:
    """Makes f's gradient NaN at chosen steps, a number of times each; on one rank."""

    def __init__(self, monkeypatch, at: dict[int, int]) -> None:
        self.left = dict(at)
        self.steps: list[int] = []
        step, forward = Minimax.step, Player.forward

        def noting(game, batches, number, radii):
            self.steps.append(number)
            return step(game, batches, number, radii)

        def poisoned(player, images, *, gradient):
            output = forward(player, images, gradient=gradient)
            if player.name == "f" and gradient and self.left.get(self.steps[-1], 0):
                self.left[self.steps[-1]] -= 1
                return output._replace(logits=output.logits * float("nan"))
            return output

        monkeypatch.setattr(Minimax, "step", noting)
        monkeypatch.setattr(Player, "forward", poisoned)


def attempts(run: Path) -> list[str]:
    return [a["outcome"] for a in json.loads((run / "attempts.json").read_text())["attempts"]]


def _judge_later(monkeypatch) -> None:
    """Leave verdicts open as on a GPU, where nobody asks for them until they are needed."""
    begin = Player.__init__

    def begun(player, *arguments, **options):
        begin(player, *arguments, **options)
        player.judged_later = True

    monkeypatch.setattr(Player, "__init__", begun)


JUDGED = {"at each update": (False, 1), "at the end of the step": (True, 1), "later": (True, 100)}


@pytest.fixture(params=JUDGED.values(), ids=JUDGED.keys())
def every(request, monkeypatch) -> int:
    """Steps between two records, each of which settles the verdict on its step.

    The verdicts are read as on a CPU, or as on a GPU.
    """
    later, every = request.param
    if later:
        _judge_later(monkeypatch)
    return every


def test_stop_names_step_and_rank(small_run, every, monkeypatch, tmp_path):
    values = {**settings(small_run), "name": "a", "log": {"to": [], "every_steps": every}}
    Poison(monkeypatch, {4: 1})
    with pytest.raises(NonFiniteError, match=r"^step 4: the gradient of f .*from rank 0 \(f/ce\)"):
        main(validate(values))
    assert attempts(tmp_path / "runs/a") == ["gave up"]


def test_rollback_cures_what_happens_once_without_a_trace(small_run, every, monkeypatch, tmp_path):
    values = {**settings(small_run), "log": {"to": [], "every_steps": every}}
    main(validate({**values, "name": "whole"}))
    values |= {"name": "a", "checkpoint": {"every_steps": 4}}
    values["faults"] = {"non_finite": "rollback"}
    poison = Poison(monkeypatch, {6: 1, 11: 1})
    main(validate(values))
    # Each time the steps since the checkpoint are repeated. The save before step 12 settles 11.
    assert poison.steps == [*range(7 + (every > 1)), *range(4, 12), *range(8, 24)]
    assert fingerprint(tmp_path / "runs/a") == fingerprint(tmp_path / "runs/whole")
    if every == 1:
        assert losses(tmp_path / "runs/a") == losses(tmp_path / "runs/whole")
    assert attempts(tmp_path / "runs/a") == ["rolled back", "rolled back", "finished"]


def test_rollback_leaves_out_a_step_that_fails_again_and_gives_up(
    small_run, every, monkeypatch, tmp_path
):
    values = {**settings(small_run), "checkpoint": {"every_steps": 4}}
    values |= {"log": {"to": [], "every_steps": every}}
    values["faults"] = {"non_finite": "rollback", "non_finite_limit": 3}
    poison = Poison(monkeypatch, {6: 100})
    main(validate({**values, "name": "a"}))
    known = 7 + (every > 1)  # step 7 is begun before the verdict on 6 is read
    assert poison.steps == [*range(known), *range(4, known), 4, 5, *range(7, 24)]
    again = Poison(monkeypatch, {6: 100, 7: 100})
    with pytest.raises(NonFiniteError, match=r"step 7, after 3 rollbacks \(steps 6, 6, 7\)"):
        main(validate({**values, "name": "b"}))
    assert again.steps.count(7) == (2 if every == 1 else 4)


def _stopped(values: dict) -> str:
    from _pytest.monkeypatch import MonkeyPatch

    rank = torch.distributed.get_rank()
    with MonkeyPatch.context() as patch:
        _judge_later(patch)
        Poison(patch, {4: 2} if rank == 1 else {})
        with pytest.raises(NonFiniteError) as stopped:
            main(validate(values))
    return str(stopped.value)


@pytest.mark.parametrize("saves", [{"every_steps": 1}, {"every_minutes": 1e-9}, {}])
def test_a_step_is_settled_before_it_is_saved(small_run, saves, tmp_path):
    """By steps, which all ranks count; by the clock, which only rank 0 reads; not at all."""
    values = {**settings(small_run), "name": "a", "checkpoint": {"keep": 30, **saves}}
    values["log"] = {"to": [], "every_steps": 100}
    found = run_ranks(2, _stopped, values, timeout=1000)
    assert found[0] == found[1]
    assert found[0].startswith("step 4: the gradient of f is not finite")
    steps = [int(path.name[5:]) for path in (tmp_path / "runs/a/checkpoints").glob("step-*")]
    assert max(steps, default=4) == 4


@pytest.mark.parametrize("saves", [{"every_steps": 4}, {"every_minutes": 1e-9}])
def test_the_checkpoint_of_an_evaluated_step_is_written_once_and_after_it(
    small_run, saves, monkeypatch
):
    saved: list[tuple[int, int]] = []
    save = checkpoint.save

    def noting(folder, step, state, **options):
        saved.append((step, state["epoch"]))
        return save(folder, step, state, **options)

    monkeypatch.setattr(checkpoint, "save", noting)
    main(validate({**settings(small_run), "name": "a", "checkpoint": saves}))
    # An epoch has 8 steps, and its evaluation belongs to it.
    assert saved == [(step, step // 8) for step in sorted(dict(saved))]
    assert {8, 16, 24} <= dict(saved).keys()


def _skipping(values: dict) -> tuple[list[int], str]:
    from _pytest.monkeypatch import MonkeyPatch

    rank = torch.distributed.get_rank()
    with MonkeyPatch.context() as patch:
        # M = 4 micro-batches on two ranks: two forward passes with gradients a rank and step.
        poison = Poison(patch, {6: 2, 7: 2} if rank == 1 else {})
        main(validate({**values, "name": "skips"}))
        steps = list(poison.steps)
        Poison(patch, {step: 2 for step in range(10)} if rank == 1 else {})
        with pytest.raises(NonFiniteError) as stopped:
            main(validate({**values, "name": "stops"}))
    return steps, str(stopped.value)


def test_skip_leaves_the_network_and_goes_on_jointly(small_run, tmp_path):
    values = {**settings(small_run), "checkpoint": {"every_steps": 1, "keep": 30}}
    values["faults"] = {"non_finite": "skip", "non_finite_limit": 3}
    found = run_ranks(2, _skipping, values, timeout=1000)
    assert found[0][0] == found[1][0] == list(range(24))
    assert found[0][1] == found[1][1]
    assert found[0][1].startswith("step 3: the gradient of f is not finite")
    assert "from rank 1 (f/ce)" in found[0][1]
    states = {k: checkpoint.load(tmp_path / "runs/skips/checkpoints", k) for k in range(6, 10)}
    for before, after, moved in ((6, 7, False), (7, 8, False), (8, 9, True)):
        for name, may_move in (("f", moved), ("g0", True)):
            weights = [states[k]["players"][name]["network"] for k in (before, after)]
            same = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
            assert same != may_move, (before, name)


# ---------------------------------------------------------------------------- crash loops


def _crash(values: dict, step: int) -> None:
    def killed() -> None:
        raise Killed

    with pytest.raises(Killed), failpoint("start of the step", step, killed):
        main(validate(values))


def test_a_crash_loop_is_recognised_and_progress_is_not_one(small_run, tmp_path):
    values = {**settings(small_run), "name": "a", "checkpoint": {"every_steps": 5}}
    values["faults"] = {"restarts": 2}
    for step in (3, 4, 7, 7, 8, 6):  # three begin before the first checkpoint, three after it
        _crash(values, step)
    with pytest.raises(CrashLoopError, match="3 attempts in a row have begun at step 5") as loop:
        main(validate(values))
    assert loop.value.exit_code == 3
    # Told once; who has removed the cause starts again.
    main(validate(values))
    assert attempts(tmp_path / "runs/a") == [*["failed"] * 6, "gave up", "finished"]


def test_a_damaged_record_of_attempts_does_not_stop_a_run(small_run, tmp_path):
    values = {**settings(small_run), "name": "a", "max_steps": 4}
    _crash(values, 3)
    for text in ("", "[]", '{"attempts": [{}], "rollbacks": []}', '{"attempts": 1}'):
        (tmp_path / "runs/a/attempts.json").write_text(text)
        _crash(values, 3)
    main(validate(values))


# ---------------------------------------------------------------------------- changed runs


def test_changes_are_refused_unless_overridden_key_by_key(small_run, tmp_path):
    values = {**settings(small_run), "name": "a"}
    main(validate({**values, "max_steps": 6}))
    changed = {**values, "optimizer": {"name": "adam", "lr": 0.5, "weight_decay": 0.0}}
    for overrides in ((), ("optimizer.lr",)):
        with pytest.raises(ConfigError) as refused:
            main(validate(changed), overrides=overrides)
        text = str(refused.value)
        assert ("optimizer.lr: 0.001 → 0.5" in text) == (not overrides)
        assert "optimizer.weight_decay: 0.0001 → 0.0" in text
        assert "--resume-override optimizer.weight_decay" in text
    both = ("optimizer.lr", "optimizer.weight_decay")
    # Killed at once: the checkpoint and config.yaml of the changed run are there already.
    with pytest.raises(Killed), failpoint("start of the step", 7, _killed):
        main(validate(changed), overrides=both)
    written = parse_yaml((tmp_path / "runs/a/config.yaml").read_text(), "")
    assert written["optimizer"]["lr"] == 0.5
    main(validate(changed))
    assert checkpoint.load_choice(tmp_path / "runs/a/checkpoints", "last")["step"] == 24
    with pytest.raises(ConfigError, match=r"optimizer.lr: 0.5 → 0.001"):
        main(validate(values))


def _killed() -> None:
    raise Killed


def test_a_finished_run_that_goes_on_has_no_figures_until_its_new_end(small_run, tmp_path):
    from rebias_dist import load
    from rebias_dist.evaluation.subjects import find_checkpoints

    values = {**settings(small_run), "name": "a"}
    run = tmp_path / "runs/a"
    main(validate({**values, "max_steps": 2}))
    assert load(run).metrics["steps"] == 2
    assert find_checkpoints(str(run))[0].finished
    longer = validate({**values, "max_steps": 4})
    with pytest.raises(Killed), failpoint("start of the step", 4, _killed):
        main(longer)
    assert load(run, "last").metrics is None
    assert not find_checkpoints(str(run))[0].finished
    main(longer)
    assert load(run).metrics["steps"] == 4


def test_a_run_beyond_a_smaller_max_steps_is_evaluated_once_and_ends(small_run, tmp_path):
    values = {**settings(small_run), "name": "a"}
    run = tmp_path / "runs/a"
    main(validate({**values, "max_steps": 6}))
    (run / "results.json").unlink()
    state = (run / "metrics.jsonl").read_text()
    found = main(validate({**values, "max_steps": 2}))
    assert found["steps"] == 6
    evaluated = (run / "metrics.jsonl").read_text().removeprefix(state)
    assert evaluated.count("selection/f_accuracy") <= 1


def test_other_data_are_refused_unless_overridden(small_run, tmp_path):
    import shutil

    from rebias_dist.assemble import data_root

    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(data_root(validate(small_run)), first)
    other = {**small_run, "data": {**small_run["data"], "seed": 1}}
    shutil.copytree(data_root(validate(other)), second)
    values = {**settings(small_run), "name": "a"}
    main(validate({**values, "max_steps": 6, "data": {"root": str(first)}}))
    moved = validate({**values, "data": {"root": str(second)}})
    with pytest.raises(ConfigError, match=r"manifest.train: '\w{64}' → '\w{64}'"):
        main(moved)
    keys = [f"manifest.{split}" for split in ("train", "selection", "biased", "unbiased", "rho0")]
    main(moved, overrides=keys)


def test_a_run_cannot_be_moved_to_other_steps(small_run):
    values = {**settings(small_run), "name": "a"}
    main(validate({**values, "max_steps": 6}))
    with pytest.raises(ConfigError, match="trained with 8 steps per epoch"):
        main(validate({**values, "global_batch": 24}), overrides=["global_batch"])


# ---------------------------------------------------------------------------- other


def test_a_stop_request_is_heard_between_the_splits_of_an_evaluation(small_run, monkeypatch):
    from rebias_dist.evaluation import splits as evaluation

    evaluated: list[str] = []
    one = evaluation.evaluate_split

    def noting(evaluator, dataset, *more, **options):
        evaluated.append(dataset.manifest.split)
        if len(evaluated) == 2:  # the first test split, after the selection data
            os.kill(os.getpid(), signal.SIGTERM)
        return one(evaluator, dataset, *more, **options)

    monkeypatch.setattr(evaluation, "evaluate_split", noting)
    config = validate({**settings(small_run), "name": "a", "max_steps": 3})
    with pytest.raises(InterruptedRun, match="saved at step 3"):
        main(config)
    assert len(evaluated) == 2
    found = main(config)
    assert sorted(found["checkpoints"]["last"]["splits"]) == ["biased", "rho0", "unbiased"]


def test_a_damaged_best_checkpoint_does_not_take_the_last_one_with_it(
    small_run, monkeypatch, tmp_path, capsys
):
    from rebias_dist.commands import report
    from rebias_dist.evaluation import splits as evaluation
    from rebias_dist.runs import results

    best = tmp_path / "runs/a/checkpoints/step-000000008/state.pt"
    figures = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(results, "chosen_figure", lambda config, splits: next(figures))
    one = evaluation.evaluate_split

    def damaging(evaluator, dataset, *more, **options):
        if dataset.manifest.split == "rho0":  # only tested, after training
            best.write_bytes(best.read_bytes()[:-1])
        return one(evaluator, dataset, *more, **options)

    monkeypatch.setattr(evaluation, "evaluate_split", damaging)
    config = validate({**settings(small_run), "name": "a"})
    found = main(config)
    assert list(found["checkpoints"]) == ["last"]
    assert str(best) in found["lost"]["best"]
    assert "the best checkpoint is damaged" in (tmp_path / "runs/a/logs/rank0.log").read_text()
    assert main(config) == found  # finished, and not done again
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "0 of 1" in capsys.readouterr().out


def test_a_micro_batch_of_one_needs_maps_of_more_than_one_pixel(small_run):
    network = {"name": "bagnet18"}
    values = {**settings(small_run), "micro_batch": 1, "max_steps": 1, "f": network}
    with pytest.raises(ConfigError, match=r"^micro_batch: 1 leaves a BatchNorm of f .*norm group$"):
        main(validate({**values, "data": {**values["data"], "image_size": 12}}))
    fine = {**settings(small_run), "micro_batch": 1, "max_steps": 1, "name": "fine"}
    main(validate(fine))


def test_no_run_starts_from_zero_over_damaged_checkpoints(small_run, tmp_path):
    values = {**settings(small_run), "name": "a"}
    main(validate({**values, "max_steps": 6}))
    for path in (tmp_path / "runs/a/checkpoints").glob("*/state.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="none of 2 checkpoints is intact"):
        main(validate(values))


def test_damaged_checkpoints_do_not_displace_intact_ones(small_run, tmp_path):
    values = {**settings(small_run), "name": "a", "checkpoint": {"every_steps": 2}}
    main(validate({**values, "name": "whole"}))
    folder = tmp_path / "runs/a/checkpoints"
    main(validate({**values, "max_steps": 6, "checkpoint": {"every_steps": 2, "keep": 3}}))
    assert checkpoint.steps(folder) == [2, 4, 6]
    for step in (4, 6):
        path = folder / f"step-{step:09d}/state.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def told() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with (
        pytest.raises(InterruptedRun, match="saved at step 3"),
        failpoint("start of the step", 3, told),
    ):
        main(validate(values))
    assert checkpoint.steps(folder) == [2, 3]
    assert newest_checkpoint(tmp_path / "runs/a") == 3
    assert {path.name for path in folder.glob("damaged-*")} == {
        "damaged-step-000000004",
        "damaged-step-000000006",
    }
    log = (tmp_path / "runs/a/logs/rank0.log").read_text()
    assert log.count("passed over a damaged checkpoint") == 2
    main(validate(values))
    assert fingerprint(tmp_path / "runs/a") == fingerprint(tmp_path / "runs/whole")
