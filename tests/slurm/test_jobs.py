"""Arrays on a real SLURM: sweeps, parts of a conversion, and all stages of 9-class ImageNet."""

import csv
import filecmp
import subprocess
import sys

import pytest
import yaml

from tests.data_shards.trees import NINE, train_images, val_images
from tests.slurm.cluster import wait_until
from tests.slurm.runs import ROOT, configuration, state

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]

ARRAY = ["launch/array.sbatch", "launch/env.sh", sys.executable]


def write_tree(folder):
    for split, images in (("train", train_images(NINE)), ("val", val_images(NINE))):
        for wnid, files in images.items():
            (folder / split / wnid).mkdir(parents=True)
            for name, content in files.items():
                (folder / split / wnid / name).write_bytes(content)


def submit_sweep(cluster, folder, runs):
    command = [sys.executable, "-m", "launch.commands.sweep", str(folder / "sweep.yaml")]
    command += [f"--runs-dir={runs}", "--slurm", "--", "--time=20"]
    said = cluster.run(*command, cwd=ROOT).splitlines()
    array, table = (line.partition("submitted job ")[2].partition(":")[0] for line in said)
    return said[0], array, table


def write_sweep(folder, small_run, seeds):
    (folder / "base.yaml").write_text(yaml.safe_dump(configuration(small_run, max_steps=2)))
    values = {"name": "s", "config": str(folder / "base.yaml"), "grid": {"seed": seeds}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))


def test_a_sweep_as_an_array_with_a_failing_cell(cluster, tmp_path, small_run):
    write_sweep(tmp_path, small_run, [0, 1, 2, 3])
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "s-seed2").write_text("a file where the folder of the third cell should be")
    said, array, table = submit_sweep(cluster, tmp_path, runs)
    assert "4 cells" in said
    assert cluster.wait(table) == "FAILED"  # a cell is not finished
    for number in (1, 2, 3, 4):
        expected = "FAILED" if number == 3 else "COMPLETED"
        out = next((runs / ".sweeps").glob(f"slurm-*_{number}.out")).read_text()
        assert cluster.state(f"{array}_{number}") == expected, out
    with (runs / ".sweeps/s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["status"]) for row in rows] == [
        *(("0", "finished"), ("1", "finished"), ("2", "not started"), ("3", "finished"))
    ]
    assert all(0 <= float(row["last/unbiased/f"]) <= 1 for row in rows if row["seed"] != "2")


@pytest.mark.slow
def test_the_same_command_submits_the_unfinished_cells(cluster, tmp_path, small_run):
    write_sweep(tmp_path, small_run, [0, 1])
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "s-seed1").write_text("in the way")
    assert cluster.wait(submit_sweep(cluster, tmp_path, runs)[2]) == "FAILED"
    (runs / "s-seed1").unlink()
    said, _, table = submit_sweep(cluster, tmp_path, runs)
    assert "1 cells" in said
    assert cluster.wait(table) == "COMPLETED"
    assert state(runs / "s-seed1")["status"] == "finished"


def test_parts_of_a_conversion_as_an_array(cluster, tmp_path):
    write_tree(tmp_path / "source")
    convert = ["-m", "data_shards", "convert", "imagenet9", "--samples-per-shard=10"]
    convert += ["--selection-fraction=0.2"]
    convert += ["--source", str(tmp_path / "source"), "--workers=1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = subprocess.run([sys.executable, *convert, "--output", str(whole)], cwd=ROOT)
    assert done.returncode == 0
    words = ["sbatch", "--wait", "--array=1-2", f"--output={tmp_path}/%a.out", *ARRAY]
    cluster.run(*words, *convert, "--output", str(parts), "--part", "%i/2", cwd=ROOT)
    for split in ("train", "selection", "val"):
        merge = ["-m", "data_shards", "merge", str(parts), "--split", split, "--workers=1"]
        assert subprocess.run([sys.executable, *merge], cwd=ROOT).returncode == 0
        names = sorted(path.name for path in (whole / split).iterdir())
        same, other, missing = filecmp.cmpfiles(whole / split, parts / split, names, shallow=False)
        assert (sorted(same), other, missing) == (names, [], [])


# Ends when a file appears, and leaves with exit code 75 when it is told to save.
WAITING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(75))
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
with (folder / f"starts{number}").open("a") as file:
    file.write("x")
while not (folder / "end").exists():
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_a_task_of_an_array_queues_again_alone(cluster, tmp_path):
    """Each task is told in its turn, because one of them has the number of the array."""

    def starts():
        return [len(p.read_text()) if p.exists() else 0 for p in (tmp_path / "starts1", second)]

    second = tmp_path / "starts2"
    words = ["sbatch", "--parsable", "--array=1-2", f"--output={tmp_path}/%a.out", *ARRAY]
    job = cluster.run(*words, "-c", WAITING, str(tmp_path), "%i", cwd=ROOT)
    wait_until(lambda: starts() == [1, 1], "both tasks are at work")
    for number, expected in ((1, [2, 1]), (2, [2, 2])):
        cluster.run("scancel", "--signal=USR2", f"{job}_{number}")
        wait_until(lambda n=number: starts()[n - 1] == 2, "the task has started again")
        assert starts() == expected
    (tmp_path / "end").touch()
    for number in (1, 2):
        assert cluster.wait(f"{job}_{number}") == "COMPLETED"
        assert "Restarts=1 " in cluster.show(f"{job}_{number}")


def imagenet9(cluster, tmp_path, *words):
    """Start the script on a small tree; return the jobs of its stages by name."""
    write_tree(tmp_path / "source")
    config = {
        "epochs": 1,
        "max_steps": 2,
        "device": "cpu",
        "global_batch": 8,
        "micro_batch": 4,
        "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
        "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
        "radius": {"f": 1.0, "g": 1.0},
        "data": {
            **{"dataset": "imagenet9", "root": "given by the script", "test_splits": ["val"]},
            **{"augmentation": "crop_flip", "resize": 20, "crop": 16, "selection": 0.02},
        },
        "evaluate": {"monitor": "val"},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            *("bash", "launch/imagenet9.sh", "--source", str(tmp_path / "source")),
            *("--output", str(tmp_path / "shards"), "--parts=2", f"--python={sys.executable}"),
            *(f"--train={tmp_path / 'small.yaml'}", "--convert=--samples-per-shard=10"),
            *("--convert=--selection-fraction=0.2", *words),
            *("--", "--cpu", "--nodes=2", "--name=small", f"--runs-dir={tmp_path / 'runs'}"),
        ],
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split(": job ") for line in done.stderr.splitlines() if ": job " in line)
    jobs["train"] = done.stdout.partition("submitted job ")[2].partition(",")[0]
    stages = ["convert", "merge-train", "merge-selection", "merge-val", "verify", "train"]
    assert list(jobs) == stages
    return jobs


@pytest.mark.slow
def test_all_stages_of_9_class_imagenet(cluster, tmp_path):
    jobs = imagenet9(cluster, tmp_path)
    assert cluster.wait(jobs["train"], 500) == "COMPLETED"
    assert state(tmp_path / "runs/small")["status"] == "finished"
    assert state(tmp_path / "runs/small")["world_size"] == 2


def test_a_failing_stage_cancels_the_later_ones(cluster, tmp_path):
    jobs = imagenet9(cluster, tmp_path, "--convert=--max-corrupt=nonsense")
    assert cluster.wait(jobs["train"]) == "CANCELLED"
    assert {cluster.state(jobs[stage]) for stage in jobs if stage != "convert"} == {"CANCELLED"}
    assert cluster.state(f"{jobs['convert']}_1") == "FAILED"
    said = "".join(path.read_text() for path in (tmp_path / "shards-logs").iterdir())
    assert "nonsense" in said
    assert not (tmp_path / "runs/small/config.yaml").exists()
