"""What ``--resume-override`` lets through goes on: what no longer fits begins anew, and is told."""

from pathlib import Path

import pytest
import torch

from rebias_dist.config.files import differences, validate
from rebias_dist.errors import ConfigError
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks

G = {"name": "simple_convnet", "kernel_size": 1, "width": 0.25}
VANILLA = {"method": {"name": "vanilla"}, "optimizer": {"name": "sgd", "lr": 0.01}}
OPTIMIZER, HEADS, RADII = "its optimizer begins", "its heads begin anew", "radii are measured anew"
CHANGES = {
    "from float32 to fp16": ({**VANILLA, "precision": "float32"}, {"precision": "fp16"}, []),
    "from fp16 to float32": ({**VANILLA, "precision": "fp16"}, {"precision": "float32"}, []),
    "from sgd to adam": (VANILLA, {"optimizer": {"name": "adam"}}, [OPTIMIZER]),
    "from adam to adamp": (
        {**VANILLA, "optimizer": {"name": "adam"}}, {"optimizer": {"name": "adamp"}}, [OPTIMIZER],
    ),
    "other betas": (
        {**VANILLA, "optimizer": {"name": "adam"}}, {"optimizer": {"betas": [0.5, 0.6]}}, [],
    ),
    "another schedule": (VANILLA, {"scheduler": {"name": "cosine"}}, []),
    "from a linear probe to all": (
        {**VANILLA, "f": {"freeze": "backbone"}}, {"f": {"freeze": "none"}}, [OPTIMIZER],
    ),
    "a rate for the head": (VANILLA, {"f": {"head_lr": 0.1}}, [OPTIMIZER]),
    "an average": (VANILLA, {"f": {"ema": 0.9}}, []),
    "from rebias to rubi": (
        {"method": {"name": "rebias", "lambda_f": 1.0}}, {"method": {"name": "rubi"}},
        [HEADS, OPTIMIZER],
    ),
    "fewer g": ({"method": {"name": "rebias"}, "g": [G, G]}, {"g": [G]}, [RADII]),
    "fewer g with heads": ({"method": {"name": "rubi"}, "g": [G, G]}, {"g": [G]},
                           [HEADS, OPTIMIZER]),
}  # fmt: skip


def merged(*parts: dict) -> dict:
    found: dict = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if both else value
    return found


def stopped_and_changed(values: dict, before: dict, after: dict) -> None:
    """Take three steps, and three more with the changes."""
    first = validate(merged(values, before, {"max_steps": 3}))
    second = validate(merged(values, before, after, {"max_steps": 6}))
    main(first)
    changed = differences(first.identity(), second.identity())
    main(second, overrides=[line.partition(": ")[0] for line in changed])


def warnings(run: Path, rank: int = 0) -> list[str]:
    lines = (run / f"logs/rank{rank}.log").read_text().splitlines()
    return [line for line in lines if "WARNING" in line and "because the run" in line]


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_goes_on_and_says_what_begins_anew(small_run, case):
    before, after, told = CHANGES[case]
    values = {**small_run, "name": "a", "evaluate": {"final": "none"}}
    stopped_and_changed(values, before, after)
    run = Path(values["runs_dir"]) / "a"
    assert load_choice(run / "checkpoints", "last")["step"] == 6
    found = warnings(run)
    assert len(found) == len(told), found
    for line, words in zip(found, told, strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (VANILLA, {"f": {"width": 0.5}}, "it was saved from another network"),
        ({"method": {"name": "rebias"}}, {"g": [G, G]}, "has no network g1"),
    ],
)
def test_what_cannot_go_on_is_one_line(small_run, before, after, message):
    values = {**small_run, "name": "a", "evaluate": {"final": "none"}}
    with pytest.raises(ConfigError, match=message) as caught:
        stopped_and_changed(values, before, after)
    assert "\n" not in str(caught.value)


def test_all_ranks_begin_anew_alike(small_run):
    before, after = VANILLA, {"optimizer": {"name": "adam", "lr": 1e-3}, "f": {"ema": 0.5}}
    values = {**small_run, "evaluate": {"final": "none"}}
    stopped_and_changed({**values, "name": "alone"}, before, after)
    run_ranks(2, stopped_and_changed, {**values, "name": "two"}, before, after)
    runs = [Path(values["runs_dir"]) / name for name in ("alone", "two")]
    alone, two = (load_choice(run / "checkpoints", "last")["players"]["f"] for run in runs)
    assert {int(state["step"]) for state in two["optimizer"]["state"].values()} == {3}
    for part in ("network", "average"):
        for name, value in alone[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-9, atol=1e-12)
    assert len(warnings(runs[1], 0)) == len(warnings(runs[1], 1)) == 1
