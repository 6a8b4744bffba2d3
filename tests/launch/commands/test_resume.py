"""The record of a launch, from which resume builds the command line again."""

import argparse
import json

import pytest

from launch.commands import local, slurm
from launch.commands.common import given_flags
from launch.record.command_line import (
    CommandLine,
    command_line_path,
    read_command_line,
    write_command_line,
)

# Written by version 0.1.0.
OLD = {
    "kind": "slurm",
    "config": "imagenet9/rebias",
    "options": ["--nodes=2", "--by=torchrun", "--gpus-per-node=8", "--name=a", "--runs-dir=/r"],
    "rest": ["--mem=0"],
    "cwd": "/home/somebody",
    "job": "17",
}


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = CommandLine("slurm", **{key: OLD[key] for key in OLD if key != "kind"})
    write_command_line(tmp_path, written)
    assert read_command_line(tmp_path) == written
    assert json.loads(command_line_path(tmp_path).read_text()) == OLD


@pytest.mark.parametrize(
    "wrong",
    [
        *({"kind": "kubernetes"}, {"config": 5}, {"options": "--nodes=2"}, {"rest": [5]}),
        *({"cwd": None}, {"job": "17; touch x"}, {"job": 17}),
    ],
)
def test_a_damaged_record_is_none(tmp_path, wrong):
    path = command_line_path(tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps({**OLD, **wrong}))
    assert read_command_line(tmp_path) is None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (local, ["--ranks=2", "--max-restarts=0", "--grace=0.5"]),
        (slurm, ["--cpu", "--ranks-per-node=3", "--by=srun", "--set=seed=1", "--set=epochs=2"]),
        (slurm, ["--gpus-per-node=2", "--time=2-00:00:00", "--qos=long", "--env=env.sh"]),
    ],
)
def test_the_recorded_flags_mean_the_same(command, words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args(["CONFIG", *words])
    assert parser.parse_args(["CONFIG", *given_flags(arguments)]) == arguments
