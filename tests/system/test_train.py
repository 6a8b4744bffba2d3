"""The training command: real processes, real exit codes, what a run leaves behind."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_shards.format.manifest import load_manifest
from rebias_dist.config.files import validate
from rebias_dist.evaluation.closing import table
from rebias_dist.phases import PHASES
from rebias_dist.telemetry.meter import describe_speed
from tests import ROOT


def torchrun(ranks: int, *arguments: str, cwd: Path, module: str | None = "rebias_dist.train"):
    """Run a module, or the script that comes first, under torchrun; return the process."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={ranks}", *(["-m", module] if module else []), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1000
    )


def train(*arguments: str, cwd: Path):
    """Run the training command in a single process."""
    command = [sys.executable, "-m", "rebias_dist.train", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1000)


def _documented() -> str:
    """Return what a scalar may be called by docs/metrics.md, as a regular expression."""
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    names = [re.escape(name) for row in rows for name in re.findall("`([^`]+)`", row)]
    networks = [re.sub(r"\b(f|g0)(?=[/_])", r"(f|g\\d+)", name) for name in names]
    return "|".join(re.sub("<[a-z]+>", r"[\\w.-]+", name) for name in networks)


DOCUMENTED = _documented()


@pytest.fixture
def config_file(small_run, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_run))
    return str(path)


@pytest.mark.slow
def test_the_default_runs_on_eight_ranks_without_any_setting(tmp_path):
    done = torchrun(8, "--max-steps", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no --config given" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    state = json.loads((run / "state.json").read_text())
    assert state["status"] == "finished"
    assert state["step"] == state["total_steps"] == 3
    assert state["world_size"] == 8
    assert sorted(p.name for p in (run / "logs").iterdir()) == [f"rank{r}.log" for r in range(8)]


def test_the_records_of_a_run(config_file, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("--name", "a", "--max-steps", "20", "--log.to", "[tensorboard]")
    done = torchrun(2, "--config", config_file, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "a"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    written = {
        (tag, line["step"]): value
        for line in lines
        for tag, value in line.items()
        if tag not in ("step", "epoch", "time")
    }
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        if not tag.startswith("hparam/")
        for event in events.Scalars(tag)
    }
    assert written.keys() == shown.keys()
    for key, value in written.items():
        assert math.isfinite(value), key
        assert shown[key] == pytest.approx(value, rel=1e-6, abs=1e-30), key
    steps = [line for line in lines if "f/loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    for tag in ("f/loss", "f/ce", "f/hsic_g0", "f/grad_norm", "g0/loss", "g0/hsic", "f/accuracy"):
        assert len({line[tag] for line in steps}) > 5, f"{tag} hardly changes"
    for line in steps:
        assert line["f/loss"] == pytest.approx(line["f/ce"] + line["f/hsic_g0"], rel=1e-12)
        assert line["g0/loss"] == pytest.approx(line["g0/ce"] - line["g0/hsic"], rel=1e-12)
        assert sum(line[f"time/{name}"] for name in PHASES) == pytest.approx(100)
        assert all(line[f"time/{name}"] > 0 for name in PHASES)
        assert line["time/data_wait"] <= line["time/data_wait_most"] <= 100
        assert line["speed/images_per_s"] == pytest.approx(2 * line["speed/images_per_s_rank"])
        assert "speed/mfu" not in line
        assert line["memory/peak_rss_mib"] > 50
    # In one run a step is always the same work.
    work = [line["speed/tflops"] / line["speed/images_per_s"] for line in steps]
    assert max(work) == pytest.approx(min(work), rel=1e-9)
    assert f", {describe_speed(steps[-1])}" in done.stderr
    results = json.loads((run / "results.json").read_text())
    f = results["checkpoints"]["last"]["splits"]["unbiased"]["networks"]["f"]
    for name, tag in (("accuracy", "accuracy"), ("conflicting", "conflicting_accuracy")):
        (final,) = events.Scalars(f"hparam/last_unbiased_f_{tag}")
        assert final.value == pytest.approx(f[name])
    undocumented = {tag for tag in events.Tags()["scalars"] if not re.fullmatch(DOCUMENTED, tag)}
    assert undocumented == set()
    images = events.Tags()["images"]
    assert {"data/train", "unbiased/f_confusion", "unbiased/f_accuracy_by_colour"} <= set(images)
    assert validate(yaml.safe_load((run / "config.yaml").read_text())).name == "a"


def test_the_closing_table_has_the_means_over_cells_of_texture():
    def figures(accuracy: float, unbiased: float | None) -> dict:
        return {"accuracy": accuracy, "standard_error": 0.01, "unbiased": unbiased}

    splits = {
        "val": {"samples": 2100, "networks": {"f": figures(0.9, 0.875), "g0": figures(0.7, None)}},
        "far": {"samples": 100, "networks": {"f": figures(0.5, None), "g0": figures(0.4, None)}},
    }
    lines = table({"last": {"step": 7, "splits": splits}}, 1 / 9).splitlines()
    assert lines[0].split()[-2:] == ["accuracy", "unbiased"]
    rows = [line.split() for line in lines[2:6]]
    assert rows[0] == ["last", "7", "val", "2,100", "f", "0.900", "±0.010", "0.875"]
    assert [row[-1] for row in rows] == ["0.875", "–", "–", "–"]


def test_evaluate_prints_the_same_figures_from_disk(config_file, tmp_path):
    assert (
        train("--config", config_file, "--name", "a", "--max-steps", "12", cwd=tmp_path).returncode
        == 0
    )
    results = json.loads((tmp_path / "runs/a/results.json").read_text())
    found = torchrun(3, "runs/a", "--json", cwd=tmp_path, module="rebias_dist.commands.evaluate")
    assert found.returncode == 0, found.stderr
    again = {entry["choice"]: entry["splits"] for entry in json.loads(found.stdout)}
    assert again.keys() == {"last", "best"}
    for choice, splits in again.items():
        expected = results["checkpoints"][choice]["splits"]
        assert splits.keys() == expected.keys()
        assert all(expected[split].items() <= splits[split].items() for split in splits)


def test_figures_agree_with_a_slow_evaluation(config_file, tmp_path):
    import numpy as np
    import torch

    import rebias_dist
    from rebias_dist.assemble import data_root
    from rebias_dist.data.normalisation import Normalise
    from rebias_dist.data.splits import open_data

    assert (
        train("--config", config_file, "--name", "a", "--max-steps", "12", cwd=tmp_path).returncode
        == 0
    )
    run = rebias_dist.load(tmp_path / "runs/a", "last")
    assert run.metrics is not None
    data = open_data(run.config, data_root(run.config))
    normalise = Normalise(data.train.manifest.normalize, torch.device("cpu"), torch.float64)
    for split, dataset in data.tests.items():
        cells = np.zeros((10, 10, 2), dtype=int)
        for i in range(len(dataset)):
            with torch.no_grad():
                logits, _ = run.f(normalise(dataset.image(i)[None]))
            right = int(logits.argmax()) == dataset.labels[i]
            cells[dataset.labels[i], dataset.bias[i]] += (1, right)
        figures = run.metrics["checkpoints"]["last"]["splits"][split]["networks"]["f"]
        assert figures["bias_count"] == cells[..., 0].tolist()
        assert figures["bias_correct"] == cells[..., 1].tolist()
        assert figures["accuracy"] == cells[..., 1].sum() / len(dataset)
        assert np.sum(figures["confusion"]) == len(dataset) == 120


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(small_run, tmp_path):
    """In one process and deterministic order: the same bits as the run that was not stopped."""
    import signal

    import torch

    from rebias_dist import train as module
    from rebias_dist.errors import InterruptedRun
    from rebias_dist.runs.checkpoint import load_choice
    from rebias_dist.step.minimax import Minimax

    whole = {**small_run, "name": "whole", "max_steps": 14, "checkpoint": {"keep": 2}}
    module.main(validate(whole))

    step = Minimax.step

    def stop_after_five(self, batches, number, radii):
        found = step(self, batches, number, radii)
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    stopped = validate({**whole, "name": "stopped"})
    Minimax.step = stop_after_five
    try:
        with pytest.raises(InterruptedRun, match="saved at step 6"):
            module.main(stopped)
    finally:
        Minimax.step = step
    state = json.loads((tmp_path / "runs/stopped/state.json").read_text())
    assert (state["status"], state["step"]) == ("interrupted", 6)
    module.main(stopped)

    a = load_choice(tmp_path / "runs/whole/checkpoints", "last")
    b = load_choice(tmp_path / "runs/stopped/checkpoints", "last")
    for name in ("f", "g0"):
        for key, tensor in a["players"][name]["network"].items():
            assert torch.equal(tensor, b["players"][name]["network"][key]), (name, key)
        for key, entry in a["players"][name]["optimizer"]["state"].items():
            for part, value in entry.items():
                other = b["players"][name]["optimizer"]["state"][key][part]
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other))
    for run in ("whole", "stopped"):
        lines = (tmp_path / "runs" / run / "metrics.jsonl").read_text().splitlines()
        steps = [e["step"] for e in map(json.loads, lines) if "f/loss" in e]
        assert steps == list(range(1, 15)), run


def test_a_finished_run_says_so_and_another_configuration_is_refused(config_file, tmp_path):
    arguments = ("--config", config_file, "--name", "a", "--max-steps", "2")
    assert train(*arguments, cwd=tmp_path).returncode == 0
    before = (tmp_path / "runs/a/metrics.jsonl").read_bytes()
    again = train(*arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    other = train(*arguments, "--optimizer.lr", "0.5", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "optimizer.lr: 0.001 → 0.5" in other.stderr
    never = train(*arguments, "--resume", "never", cwd=tmp_path)
    assert (never.returncode, never.stderr.count("\n")) == (2, 1)
    assert (tmp_path / "runs/a/metrics.jsonl").read_bytes() == before
    must = train("--config", config_file, "--name", "b", "--resume", "must", cwd=tmp_path)
    assert (must.returncode, must.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "runs/b").exists()


@pytest.fixture
def shards(small_run, tmp_path):
    """The settings of a run on shards in a folder of their own, which a test may damage."""
    import shutil

    from rebias_dist.assemble import data_root

    root = tmp_path / "shards"
    shutil.copytree(data_root(validate(small_run)), root)
    small_run["data"] = {"root": str(root)}
    path = tmp_path / "shards.yaml"
    path.write_text(yaml.safe_dump(small_run))
    return root, str(path)


def _damage(root: Path, how: str, first: bool = False) -> None:
    shard = next((root / "train").glob("*.tar"))
    manifest = root / "train" / "manifest.json"
    if how == "missing shard":
        shard.unlink()
    elif how == "short shard":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif how == "another data set":
        other = load_manifest(root / "train").model_copy(update={"dataset": "imagenet9"})
        manifest.write_bytes(other.to_json())
    elif how == "altered manifest":
        manifest.write_text(manifest.read_text().replace("biased_mnist", "imagenet9"))
    elif how == "label outside":
        import numpy as np

        index = np.load(root / "train" / "index.npy")
        index["label"][3] = 10
        np.save(root / "train" / "index.npy", index)
    elif how == "flipped bit":
        content = bytearray(shard.read_bytes())
        # Past the first sample, which tells the images' shape; rank 0 shows the first 32.
        places = [i for i in range(len(content)) if content.startswith(b"IDAT", i)]
        content[places[5 if first else -1] + 8] ^= 1
        shard.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "code", "named"),
    [
        ("missing shard", 3, "train-000000.tar"),
        ("short shard", 3, "train-000000.tar"),
        ("another data set", 2, "imagenet9"),
        ("altered manifest", 3, "manifest.json"),
        ("label outside", 3, "label"),
        ("flipped bit", 3, "train-000000.tar"),
    ],
)
def test_damaged_data_end_with_one_line(shards, tmp_path, how, code, named):
    root, config = shards
    _damage(root, how)
    done = train("--config", config, "--name", "a", cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1, done.stderr
    assert named in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("first", [False, True])
def test_a_damaged_sample_of_one_rank_ends_all_ranks_with_one_line(shards, tmp_path, first):
    root, config = shards
    _damage(root, "flipped bit", first)
    done = torchrun(2, "--config", config, "--name", "a", cwd=tmp_path)
    assert done.returncode == 1  # torchrun's, whatever the ranks say
    lines = [line for line in done.stderr.splitlines() if line.startswith("rebias-train: error")]
    assert len(lines) == 1, done.stderr
    assert "train-000000.tar" in lines[0]
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]
    # The first rank to leave says 3; torchrun may end the others before they do.
    assert "exitcode:3(" in done.stderr.replace(" ", ""), done.stderr
    assert json.loads((tmp_path / "runs/a/state.json").read_text())["status"] == "failed"


def test_a_checkpoint_of_another_network_is_refused(config_file, tmp_path):
    arguments = ("--config", config_file, "--max-steps", "2")
    assert train(*arguments, "--name", "a", cwd=tmp_path).returncode == 0
    run = tmp_path / "runs/a"
    changed = (run / "config.yaml").read_text().replace("kernel_size: 3", "kernel_size: 5")
    (run / "config.yaml").write_text(changed)
    command = [sys.executable, "-m", "rebias_dist.commands.evaluate", str(run)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "extracter.0.weight" in done.stderr


def test_too_many_ranks_are_refused_by_rank_zero_alone(config_file, tmp_path):
    done = torchrun(5, "--config", config_file, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("rebias-train")]
    assert len(lines) == 1
    assert "at most 4 ranks" in lines[0]
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_the_plan_and_leaves_nothing(config_file, tmp_path):
    done = train("--config", config_file, "--dry-run", "--data.workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in (
        "N = 48",
        "b = 12",
        "M = 4",
        "W = 1",
        "A = 4",
        "8 an epoch",
        "430 for training",
        # 3 buffers of 12 and 256 images of 3·8·8 bytes for each worker.
        "2 a rank, which pass on images in 0.3 MiB of memory",
    ):
        assert expected in done.stdout
    assert not (tmp_path / "runs").exists()


def test_settings_that_would_change_nothing_are_refused(shards, tmp_path):
    _, config = shards
    done = train("--config", config, "--data.rho", "0.5", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "data.rho: 0.5 would change nothing" in done.stderr


def test_a_run_survives_a_move_of_its_shards_and_notices_other_ones(shards, small_run, tmp_path):
    from rebias_dist.assemble import data_root

    root, config = shards
    assert (
        train("--config", config, "--name", "a", "--max-steps", "2", cwd=tmp_path).returncode == 0
    )
    results = json.loads((tmp_path / "runs/a/results.json").read_text())
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    command = [sys.executable, "-m", "rebias_dist.commands.evaluate", "runs/a", "--json"]

    def evaluate(*arguments: str):
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=1000
        )

    assert "no shards here" in evaluate().stderr
    found = evaluate("--data.root", str(moved))
    assert found.returncode == 0, found.stderr
    splits = json.loads(found.stdout)[0]["splits"]
    expected = results["checkpoints"]["last"]["splits"]
    assert all(expected[split].items() <= splits[split].items() for split in splits)

    embedded = {"image_size": 8, "rho": 0.5}
    other = evaluate("--data.root", str(data_root(validate({**small_run, "data": embedded}))))
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "is not the one that the run was started with" in other.stderr


def test_a_second_process_is_kept_out_of_a_run(config_file, small_run, tmp_path):
    from rebias_dist.runs.run_folder import open_run

    with open_run(validate({**small_run, "name": "a"}), "auto"):
        done = train("--config", config_file, "--name", "a", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"process {os.getpid()} on" in done.stderr
    assert (
        train("--config", config_file, "--name", "a", "--max-steps", "1", cwd=tmp_path).returncode
        == 0
    )


def test_the_best_network_has_played(small_run, tmp_path):
    """f trained on cross-entropy alone is better here than after one epoch of a harsh game."""
    from rebias_dist.train import main

    method = {"f_pretrain_epochs": 3, "lambda_f": 1e4}
    config = validate({**small_run, "name": "a", "epochs": 1, "method": method,
                       "evaluate": {"every_epochs": 1}})  # fmt: skip
    found = main(config)
    pretraining = 3 * (430 // 48)
    assert found["checkpoints"]["best"]["step"] > pretraining


def test_a_first_try_is_told_of_the_test_and_may_leave_it_out(config_file, tmp_path):
    command = ("--config", config_file, "--name", "a", "--max-steps")
    folder = tmp_path / "runs/a"
    without = train(*command, "1", "--evaluate.final", "none", cwd=tmp_path)
    assert without.returncode == 0, without.stderr
    assert "finished after 1 steps; not tested" in without.stderr
    assert json.loads((folder / "state.json").read_text())["status"] == "finished"
    assert not (folder / "results.json").exists()
    # It is no other run.
    later = train(*command, "2", cwd=tmp_path)
    assert later.returncode == 0, later.stderr
    assert "the test on 360 images follows step 2; '--evaluate.final none'" in later.stderr
    assert re.search(r"the test takes about 0:\d\d:\d\d", later.stderr), later.stderr
    assert json.loads((folder / "results.json").read_text())["steps"] == 2


def test_a_long_first_step_shows_that_it_goes_on(config_file, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'rebias_dist.train' in ' '.join(sys.orig_argv):\n"
        "    from rebias_dist.step.minimax import Minimax\n"
        "    take = Minimax.step\n"
        "    def slow(*arguments):\n"
        "        end = time.monotonic() + 2.5\n"
        "        while time.monotonic() < end:\n"
        "            time.sleep(0.1)\n"
        "        return take(*arguments)\n"
        "    Minimax.step = slow\n"
    )
    command = [sys.executable, "-m", "rebias_dist.train", "--config", config_file]
    command += ["--max-steps", "1", "--evaluate.final", "none", "--name", "a"]
    paths = f"{tmp_path}:{ROOT}"
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "INFO the first step: 0:00:02 so far" in done.stderr
