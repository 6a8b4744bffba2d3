"""Exported networks: they agree with the run's own, stand alone, and say what they are."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data_shards.sources.listing import IMAGENET_NORMALIZE
from rebias_dist import load
from rebias_dist.assemble import data_root
from rebias_dist.commands import export
from rebias_dist.commands.model_card import model_card
from rebias_dist.config.files import validate
from rebias_dist.data.normalisation import Normalise
from rebias_dist.data.splits import open_data
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.evaluation.loaded_run import LoadedRun
from rebias_dist.methods.base import Method
from rebias_dist.methods.registry import Facts
from rebias_dist.runs.networks import build_networks
from rebias_dist.step.precision import Precision
from rebias_dist.train import main
from tests.commands.test_evaluate import settings


@pytest.fixture(scope="module")
def runs(few_digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    values = settings(few_digits, folder)
    main(validate({**values, "name": "a", "max_steps": 5}))
    data = {**values["data"], "selection": "none"}
    main(validate({**values, "name": "oracle", "max_steps": 2, "data": data}))
    main(validate({**values, "name": "biased", "max_steps": 2, "method": {"name": "biased"}}))
    return folder


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "deep/a"
    with pytest.raises(SystemExit) as left:
        export.cli([str(runs / "a"), "--out", str(folder)])
    assert not left.value.code
    return folder


def test_both_files_say_what_the_run_says_of_its_test_images(runs, exported):
    run = load(runs / "a")
    data = open_data(run.config, data_root(run.config))
    images = torch.stack([data.tests["rho0"].image(i) for i in range(21)])
    precision = Precision("float32", torch.device("cpu"))
    with torch.no_grad():
        expected = run.f(
            Normalise(data.train.manifest.normalize, precision.device, precision.parameters)(images)
        )[0]
        program = torch.export.load(exported / "model.pt2").module()
        found = program(images)
        weights = load_file(exported / "model.safetensors")
        one = build_networks(run.config, 10, precision)["f"].eval()
        one.load_state_dict(weights)
        seen = json.loads((exported / "config.json").read_text())["preprocessing"]
        mean, std = (torch.tensor(seen[name]).view(3, 1, 1) for name in ("mean", "std"))
        other = one((images / 255 - mean) / std)[0]
    for logits in (found, other):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_all_files_can_be_read_by_those_whom_the_umask_lets(exported):
    modes = {path.name: path.stat().st_mode for path in exported.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_the_code_of_the_card_runs_without_this_package(runs, exported, tmp_path):
    run = load(runs / "a")
    image = open_data(run.config, data_root(run.config)).tests["rho0"].image(5)
    folder = shutil.copytree(exported, tmp_path / "elsewhere")
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "image.png")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code += "\nimport sys; assert 'rebias_dist' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        normalise = Normalise(run.constants, torch.device("cpu"))
        expected = run.classes[int(run.f(normalise(image[None]))[0].argmax())]
    assert done.stdout.strip() == expected


def test_the_card_has_the_figures_of_the_weights_that_were_exported(runs, exported, tmp_path):
    card = (exported / "README.md").read_text()
    results = json.loads((runs / "a/results.json").read_text())
    best = results["checkpoints"]["best"]
    assert f"step {best['step']}, best on selection data" in card
    for split, figures in best["splits"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {split} | 120 | f |"))
        f = figures["networks"]["f"]
        low, high = (f"{100 * end:.1f}" for end in f["intervals"]["accuracy"])
        assert f"| {100 * f['accuracy']:.1f} | {low} – {high} |" in row
        # Groups of fewer than 10 images are left out, and the worst group says so.
        worst = "–" if f["worst_group"] is None else f"{100 * f['worst_group']['accuracy']:.1f}"
        small = [group for group in f["groups"] if group["samples"] < 10]
        assert f" | {worst}{'*' if small else ' '}" in row
        (first, *_) = [f"({g['class']}, {g['value']}) {g['samples']}" for g in small] or ["nothing"]
        note = f"\\* {split}: the worst group leaves out groups of fewer than 10 images: {first}"
        assert (note in card) == bool(small)
    assert json.loads((exported / "results.json").read_text()) == results
    # What test data chose is exported only on demand, and says so.
    export.export_run(runs / "oracle", tmp_path / "last")
    assert "ORACLE" not in (tmp_path / "last/README.md").read_text()
    export.export_run(runs / "oracle", tmp_path / "best", "best")
    assert "those of an oracle and do not estimate" in (tmp_path / "best/README.md").read_text()


def test_figures_of_other_weights_are_on_no_card(runs, tmp_path):
    run = load(runs / "a", "last")
    last = {**run.metrics["checkpoints"]["last"], "step": run.step + 1}
    metrics = {**run.metrics, "checkpoints": {**run.metrics["checkpoints"], "last": last}}
    stale = LoadedRun(**{**vars(run), "metrics": metrics})
    card = model_card(stale, export.describe(run), "last", 0.0)
    assert f"None: the run's results are those of step {run.step + 1}" in card
    assert "| 120 | f |" not in card
    assert "| 120 | f |" in model_card(run, export.describe(run), "last", 0.0)


class Mine(Method):
    facts = Facts(has_g=False)


def test_the_moving_average_is_exported_in_place_of_f(few_digits, runs, tmp_path):
    values = settings(few_digits, tmp_path / "runs")
    values |= {"name": "a", "max_steps": 4, "f": {**values["f"], "ema": 0.5}}
    main(validate(values))
    run = load(tmp_path / "runs/a")
    assert export.export_run(tmp_path / "runs/a", tmp_path / "out", ema=True) < 1e-4
    written = load_file(tmp_path / "out/model.safetensors")
    for name, value in run.f_ema.state_dict().items():
        assert torch.equal(written[name], value)
    assert not torch.equal(written["fc.weight"], run.f.state_dict()["fc.weight"])
    assert json.loads((tmp_path / "out/config.json").read_text())["weights"] == "f_ema"
    card = (tmp_path / "out/README.md").read_text()
    assert "Weights: moving average (decay 0.5), step" in card
    assert "Only f_ema is in these files" in card
    with pytest.raises(ConfigError, match=r"--ema: .*/a has no moving average; .* f\.ema"):
        export.export_run(runs / "a", tmp_path / "none", ema=True)


def test_the_card_of_a_method_of_the_user_names_it(runs):
    run = load(runs / "a")
    name = f"{__name__}:Mine"
    method = run.config.method.model_copy(update={"name": name})
    other = LoadedRun(**{**vars(run), "config": run.config.model_copy(update={"method": method})})
    assert f"Method: {name}." in model_card(other, export.describe(run), "best", 0.0)


@pytest.mark.parametrize("network", ["resnet18", "bagnet18"])
def test_networks_for_photographs_are_exported_with_their_size(tmp_path, network):
    config = validate(
        {
            "method": {"name": "vanilla"},
            "f": {"name": network},
            "data": {"dataset": "imagenet9", "root": "x", "augmentation": "crop_flip", "crop": 96},
        }
    )
    f = build_networks(config, 9, Precision("float32", torch.device("cpu")))["f"].eval()
    names = tuple("abcdefghi")
    run = LoadedRun(f, [], config, None, None, 3, {}, names, IMAGENET_NORMALIZE, (3, 96, 96))
    export.write_network(run, tmp_path)
    difference = export.check(run, tmp_path)
    print(f"{network}: largest difference {difference:.1e} of the largest logit")
    described = export.describe(run)["preprocessing"]
    assert (described["resize_short_side"], described["center_crop"]) == (256, 96)
    assert described["mean"] == [0.485, 0.456, 0.406]


def test_weights_that_differ_are_noticed(runs, exported, tmp_path):
    run = load(runs / "a")
    folder = shutil.copytree(exported, tmp_path / "a")
    assert export.check(run, folder) < 1e-4
    weights = load_file(folder / "model.safetensors")
    weights["fc.bias"] = weights["fc.bias"] + 0.1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RebiasError, match=r"model.safetensors: its logits differ"):
        export.check(run, folder)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(runs, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    unfinished = shutil.copytree(runs / "a", tmp_path / "unfinished")
    shutil.rmtree(unfinished / "checkpoints")
    archived = shutil.copytree(unfinished, tmp_path / "archived")
    (unfinished / "results.json").unlink()
    for run, out, named in (
        (runs / "biased", "out", "trains no f"),
        (runs / "a", "taken", "exists already"),
        (tmp_path, "out", "no run here"),
        (unfinished, "out", "no best checkpoint yet"),
        (archived, "out", "it has results but no checkpoints"),
    ):
        with pytest.raises(ConfigError, match=named) as error:
            export.export_run(run, tmp_path / out)
        assert "\n" not in str(error.value)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["archived", "taken", "unfinished"]
    assert [p.name for p in taken.iterdir()] == ["file"]


def test_a_network_that_cannot_be_traced_is_one_line_and_leaves_nothing(tmp_path, runs):
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, images):
            rows = images.mean((2, 3)) * self.weight
            return (rows, rows) if float(rows.sum()) > 0 else (-rows, rows)

    run = load(runs / "a")
    own = LoadedRun(**{**vars(run), "f": Branching()})
    with pytest.raises(RebiasError, match=r"torch\.export cannot export it") as error:
        export.write_network(own, tmp_path)
    assert "\n" not in str(error.value)


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom rebias_dist.commands.export import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=1000)
    assert done.returncode == 0, done.stderr


def test_an_exported_folder_holds_no_array_that_is_not_the_networks(exported):
    assert {p.name for p in exported.iterdir()} == {
        *("README.md", "config.json", "config.yaml", "model.pt2", "model.safetensors"),
        "results.json",
    }
    weights = load_file(exported / "model.safetensors")
    assert all(np.isfinite(tensor.numpy()).all() for tensor in weights.values())
