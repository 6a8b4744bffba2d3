"""Shards, checkpoints and runs that version 0.1.0 wrote are still read.

``tests/fixtures/format2`` holds shards of 96 small images, and a run on them that was stopped after
5 of 12 steps. ``whole.jsonl`` has the scalars of the same run without the stop.
"""

import json
import math
import shutil
from pathlib import Path

import pytest

import rebias_dist
from data_shards.__main__ import cli as data_shards
from rebias_dist.config.files import validate
from rebias_dist.runs.run_folder import RunFolder
from rebias_dist.train import main
from tests import ROOT

FIXTURE = ROOT / "tests/fixtures/format2"


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURE / "run", tmp_path / "runs/half"))


@pytest.mark.parametrize("split", ["train", "selection", "test"])
def test_the_shards_verify(split, capsys):
    assert data_shards(["verify", str(FIXTURE / "shards" / split)]) == 0


def test_the_checkpoints_load(run):
    assert rebias_dist.load(run, "last").step == 5
    assert rebias_dist.load(run, "best").step == 3


def test_the_run_resumes_to_the_steps_of_one_that_was_never_stopped(run):
    config = RunFolder(run).read_config()
    values = config.model_dump() | {"runs_dir": str(run.parent), "max_steps": None}
    values["data"]["root"] = str(FIXTURE / "shards")
    main(validate(values), resume="must")
    expected = [json.loads(line) for line in (FIXTURE / "whole.jsonl").read_text().splitlines()]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if "f/loss" in row]
    assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(1, 13))
    differences = [
        abs(mine[key] - value) / max(abs(value), 1e-3)
        for mine, row in zip(found, expected, strict=True)
        for key, value in row.items()
    ]
    print("largest relative difference:", max(differences))
    assert max(differences) < 1e-7
    assert all(math.isfinite(difference) for difference in differences)
