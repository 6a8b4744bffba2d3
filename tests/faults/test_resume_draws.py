"""Draws with replacement and augmentation go on as if the run had not been stopped."""

import json
import math
import subprocess
import sys

import pytest
import torch

from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks
from tests.faults.test_resume_exactly import moved, settings, stop_everywhere

SCHEDULER = {"name": "cosine", "unit": "step", "warmup": 5}
OPTIMIZER = {"name": "adam", "betas": [0.8, 0.99], "eps": 1e-6}
DATA = {
    "sampling": "bias_conflicting:10",
    "augment": {"rotation": 20.0, "hue": 0.1, "rand_augment": 1},
}


def drawn(small_run: dict) -> dict:
    values = settings(small_run)
    return {
        **values,
        "data": {**values["data"], **DATA},
        "scheduler": SCHEDULER,
        "optimizer": OPTIMIZER,
    }


def test_stopped_in_mid_epoch(small_run, tmp_path):
    stop_everywhere(drawn(small_run), [("between g and f", 5)], leader=True)
    # Five steps of warm-up, and half a cosine over the other nineteen.
    rates = [(step + 1) / 6 for step in range(5)]
    rates += [0.5 * (1 + math.cos(math.pi * step / 19)) for step in range(19)]
    lines = (tmp_path / "runs/stopped-0/metrics.jsonl").read_text().splitlines()
    found = [row["f/lr"] / 1e-3 for row in map(json.loads, lines) if "f/lr" in row]
    assert found == pytest.approx(rates, rel=1e-12)


@pytest.mark.slow
def test_two_ranks_then_one_then_three(small_run, tmp_path):
    values = {**drawn(small_run), "micro_batch": 4, "name": "moving", "checkpoint": {}}
    values["f"] = small_run["f"]
    seen = moved(values, tmp_path)
    assert any(len(set(ids)) < len(ids) for ids in seen.values())  # with replacement


def _refused(values: dict) -> str:
    torch.distributed.barrier()
    with pytest.raises(ConfigError) as caught:
        main(validate(values))
    return str(caught.value)


def test_a_group_without_samples_is_refused_on_all_ranks_and_by_exit_code_2(small_run):
    values = settings(small_run)
    data = {**values["data"], "rho": 1.0, "sampling": "group_balanced"}
    lines = run_ranks(2, _refused, {**values, "data": data}, timeout=1000)
    assert lines[0] == lines[1]
    assert lines[0].startswith("data.sampling: group_balanced needs samples of the class '0' with")
    flags = [f"--data.{key}={value}" for key, value in data.items()]
    flags += [f"--runs-dir={values['runs_dir']}", "--global-batch=48", "--micro-batch=12"]
    done = subprocess.run(
        [sys.executable, "-m", "rebias_dist.train", *flags, "--dry-run"],
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"{lines[0]}\n")
    assert done.stderr.count("\n") == 1
