"""Sweeps with several cells at a time, and the table that a sweep leaves."""

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.commands import sweep
from launch.sweep.grid import Cell, plan_cells, read_sweep
from launch.sweep.results_csv import git_commit, write_table
from launch.sweep.runner import shares
from rebias_dist.config.files import configs_folder, read_config_file, validate
from rebias_dist.errors import ConfigError
from rebias_dist.methods.registry import METHODS
from tests import ROOT
from tests.commands.test_report import write_run


@pytest.fixture(autouse=True)
def _own_signals():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def written(folder: Path, small_run: dict, **values: object) -> str:
    settings = {key: value for key, value in small_run.items() if key != "runs_dir"}
    (folder / "base.yaml").write_text(yaml.safe_dump({**settings, "max_steps": 2}))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "config": str(folder / "base.yaml"), **values}))
    return str(path)


def test_cells_at_a_time_share_the_cores(monkeypatch):
    cores = os.sched_getaffinity(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    dealt = shares(2, 1)
    assert frozenset().union(*(share.cores for share in dealt)) == cores
    assert len(cores) == 1 or not dealt[0].cores & dealt[1].cores
    assert [share.gpus for share in dealt] == [None, None]
    assert all(share.cores for share in shares(3 * len(cores), 1))


def test_cells_at_a_time_have_gpus_of_their_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [share.gpus for share in shares(2, 2)] == ["4,5", "6,7"]
    with pytest.raises(ConfigError, match=r"^--jobs: 3 at a time with 2 ranks need 6 GPUs"):
        shares(3, 2)


def test_two_cells_at_a_time_and_their_table(tmp_path, small_run, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = written(
        tmp_path,
        small_run,
        grid={"method.name": ["vanilla"], "seed": [3, 4]},
    )
    flags = [path, "--runs-dir", str(tmp_path / "runs")]
    # A cell that cannot run: a file lies where its folder should be.
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/s-vanilla-seed4").write_text("in the way")
    before = git_commit()
    affinity = os.sched_getaffinity(0)
    try:
        assert sweep.main([*flags, "--jobs", "2"]) == 1
    finally:
        os.sched_setaffinity(0, affinity)
    shown = capsys.readouterr()
    assert "failed: s-vanilla-seed4: exit code" in shown.err
    assert "s-vanilla-seed3 finished in" in shown.out

    with (tmp_path / "runs/.sweeps/s.csv").open(newline="") as file:
        done, failed = csv.DictReader(file)
    assert (done["cell"], done["status"], done["seed"]) == ("s-vanilla-seed3", "finished", "3")
    results = json.loads((tmp_path / "runs/s-vanilla-seed3/results.json").read_text())
    score = results["checkpoints"]["last"]["splits"]["unbiased"]["networks"]["f"]
    assert float(done["last/unbiased/f"]) == score["accuracy"]
    assert done["git_commit"] == before or before != git_commit()
    assert json.loads(done["config"])["seed"] == 3
    assert (failed["status"], failed["last/unbiased/f"]) == ("not started", "")

    assert sweep.main([*flags, "--table"]) == 1
    assert "not finished: s-vanilla-seed4" in capsys.readouterr().err


def test_a_checkpoint_that_test_data_chose_is_an_oracle_in_the_table(tmp_path):
    cells = []
    for name, selection in (("chosen", 0.1), ("oracle", "none")):
        values = {"method": {"name": "vanilla"}, "data": {"selection": selection}}
        counts = ({"unbiased": {"f": 900}}, {"unbiased": {"f": 500}})
        write_run(tmp_path / name, values, counts[0], last=counts[1])
        config = validate({"name": name, "runs_dir": str(tmp_path), **values})
        cells.append(Cell(name, [], config, ranks=1))
    write_table(tmp_path / "table.csv", cells, ["data.selection"])
    with (tmp_path / "table.csv").open(newline="") as file:
        chosen, oracle = csv.DictReader(file)
    columns = ("last/unbiased/f", "best/unbiased/f", "oracle/unbiased/f")
    assert [chosen[column] for column in columns] == ["0.5", "0.9", ""]
    assert [oracle[column] for column in columns] == ["0.5", "", "0.9"]


def test_a_cell_by_its_number(tmp_path, small_run):
    path = written(tmp_path, small_run, grid={"seed": [0, 1]})
    with pytest.raises(ConfigError, match=r"^--cell: 3 of 2 cells"):
        sweep.main([path, "--cell", "3"])
    with pytest.raises(ConfigError, match=r"need --slurm"):
        sweep.main([path, "--", "--partition=gpu"])


def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(
        ["git", "log", "-20", "--format=%H"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if head.returncode != 0:
        pytest.skip("not in a checkout")
    assert git_commit().removesuffix("-dirty") in head.stdout.split()


@pytest.mark.parametrize("name", ["biased_mnist/sweeps/published", "biased_mnist/sweeps/flac"])
def test_the_sweeps_of_all_methods_are_the_shipped_configurations(name):
    """But for what the published protocol has: Adam, nothing held out, BatchNorm sees all."""
    weights = {0.999: 10_000.0, 0.997: 2_000.0, 0.995: 1_500.0, 0.99: 110.0}
    planned = plan_cells(read_sweep(name), name, None, None)
    for cell in planned:
        method, data = cell.config.method, cell.config.data
        values = read_config_file(f"biased_mnist/{method.name}")
        values |= {"name": cell.name, "seed": cell.config.seed}
        values["micro_batch"] = values["global_batch"]
        if values["optimizer"]["name"] == "adamp":
            values["optimizer"]["name"] = "adam"
        values["data"] |= {"rho": data.rho, "seed": cell.config.seed, "selection": "none"}
        if method.name == "flac":
            values["method"]["flac_weight"] = weights[data.rho]
        expected = validate(values)
        unused = {"radius"} | ({"g"} if not expected.has_g else set())
        assert cell.config.model_dump(exclude=unused) == expected.model_dump(exclude=unused)
    methods = {cell.config.method.name for cell in planned}
    assert methods == ({"flac"} if name.endswith("flac") else METHODS.keys() - {"flac"})


@pytest.mark.parametrize(
    ("name", "cells"), [("biased_mnist/sweeps/table", 120), ("imagenet9/sweeps/table", 15)]
)
def test_the_published_tables_resolve(name, cells):
    planned = plan_cells(read_sweep(name), name, None, None)
    assert len(planned) == cells
    assert {cell.config.method.name for cell in planned} == {
        *("vanilla", "biased", "learned_mixin", "rubi", "rebias")
    }
    for cell in planned:
        shipped = cell.config.data.dataset + "/" + cell.config.method.name
        text = (Path(str(configs_folder())) / f"{shipped}.yaml").read_text()
        own = yaml.safe_load(text)["method"]
        assert {key: getattr(cell.config.method, key) for key in own} == own
