"""Runs on networks of timm, of torchvision and of the user's own, with weights of others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

import rebias_dist
from data_shards.sources.listing import IMAGENET_NORMALIZE
from rebias_dist.assemble import data_root
from rebias_dist.config.files import validate
from rebias_dist.data import open_split
from rebias_dist.errors import ConfigError
from rebias_dist.evaluation.checkpoints import evaluate_all
from rebias_dist.evaluation.text import text
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.reporting.comparison import compare
from rebias_dist.reporting.disagreements import disagreements
from rebias_dist.reporting.runs import read_run
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.train import main
from tests import ROOT
from tests.distributed.ranks import run_ranks

NETS = "tests.models.networks"
VIT = {
    "name": "timm:vit_tiny_patch16_224",
    "options": {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2},
}


def untested(values: dict, **more) -> dict:
    small = {"global_batch": 8, "micro_batch": 4, "precision": "float32", "max_steps": 2}
    return {**values, **small, "evaluate": {"final": "none", "every_epochs": 3}, **more}


def train(values: dict, name: str, **more) -> dict:
    return main(validate({**values, **more, "name": name}))


def train_with_cache(cache: str, *arguments) -> None:
    os.environ["TORCH_HOME"] = cache  # a rank has the environment of the fork server
    train(*arguments)


def players(values: dict, name: str) -> dict:
    return load_choice(Path(values["runs_dir"]) / name / "checkpoints", "last")["players"]


def refused(values: dict, **more) -> str:
    with pytest.raises(ConfigError) as caught:
        train(values, "refused", **more)
    print(caught.value)
    assert "\n" not in str(caught.value)
    assert not (Path(values["runs_dir"]) / "refused").exists()
    return str(caught.value)


@pytest.mark.slow
def test_a_vision_transformer_plays_against_a_resnet_on_two_ranks(small_run):
    values = untested(small_run, f=VIT, g=[{"name": "resnet18"}])
    run_ranks(2, train, values, "game", timeout=1000)
    found = players(values, "game")
    assert found["f"]["network"]["head.weight"].shape == (10, 24)
    assert found["g0"]["network"]["fc.weight"].shape == (10, 512)


def test_features_that_are_too_wide_or_detached_are_refused_at_the_start(small_run):
    values = untested(small_run)
    assert "5,000 wide" in refused(values, f={"name": f"{NETS}:Wide"})
    assert "detached" in refused(values, f={"name": f"{NETS}:Detached"})
    frozen = {**values["f"], "freeze": "backbone"}
    assert re.search(r"f\.freeze: rebias .* set freeze: none", refused(values, f=frozen))


def test_a_network_that_cannot_take_the_images_is_one_line(small_run):
    other = {"name": f"{NETS}:vit", "feature": "encoder"}
    assert re.search(
        r"f: .*vit fails on images \[3, 8, 8\].*; set the size",
        refused(untested(small_run), f=other),
    )


@pytest.mark.parametrize("option", ["name", "num_classes"])
@pytest.mark.parametrize("network", ["simple_convnet", "resnet18", f"{NETS}:vit"])
def test_what_the_run_gives_a_network_is_no_option(small_run, network, option):
    line = refused(untested(small_run), f={"name": network, "options": {option: 5}})
    assert re.match(rf"f\.options\.{option}: 5: .*; remove it$", line)
    line = refused(untested(small_run), g=[{"name": network, "options": {option: 5}}])
    assert line.startswith(f"g.0.options.{option}: 5: ")


def test_a_network_beyond_the_memory_is_one_line(small_run):
    line = refused(untested(small_run), f={"name": "simple_convnet", "width": 1e9})
    assert re.match(r"f: simple_convnet cannot be built: .*memory.*; make it smaller$", line)


def test_a_network_in_the_working_folder_is_found_by_the_console_script(small_run, tmp_path):
    (tmp_path / "here").mkdir()
    page = (ROOT / "docs/howto/own-network.md").read_text()
    (python,) = re.findall(r"^```python\n(from torch.*?)^```", page, re.M | re.S)
    (tmp_path / "here/mynet.py").write_text(python)
    script = tmp_path / "bin/rebias-train"
    script.parent.mkdir()
    script.write_text("from rebias_dist.commands.train import cli\ncli()\n")
    g = {"name": "mynet:patches", "feature": "4", "options": {"size": 3}}
    values = untested(small_run, g=[g])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, script, "--config", tmp_path / "run.yaml", "--name", "own"],
        cwd=tmp_path / "here", capture_output=True, text=True, timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert players(values, "own")["g0"]["network"]["5.weight"].shape == (10, 64)


# --- pretrained --------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Weights of resnet18 as torchvision finds them in its cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    file = tmp_path / "torch/hub/checkpoints" / Path(url).name
    file.parent.mkdir(parents=True)
    torch.manual_seed(3)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    return file


def test_published_weights_come_with_their_normalisation_through_a_stop(
    small_run, published, caplog
):
    caplog.set_level("INFO", "rebias_dist")
    values = untested(small_run, f={"name": "resnet18", "pretrained": True})
    run_ranks(2, train_with_cache, os.environ["TORCH_HOME"], values, "a", timeout=1000)
    weights = torch.load(published, weights_only=True)
    published.unlink()
    # A resumed run needs them no more, on another number of ranks neither.
    train({**values, "max_steps": 4, "evaluate": {"every_epochs": 3}}, "a")
    run = Path(values["runs_dir"]) / "a"
    loaded = rebias_dist.load(run, "last")
    assert loaded.step == 4
    assert loaded.constants == IMAGENET_NORMALIZE
    first = load_choice(run / "checkpoints", "last")["players"]["f"]["network"]
    change = (first["layer4.1.conv2.weight"] - weights["layer4.1.conv2.weight"]).abs().max()
    print(f"largest change of a weight in 4 steps of 1e-3: {change:.1e}")
    assert 0 < change < 5e-3
    log = (run / "logs/rank0.log").read_text()
    (line,) = [line for line in log.splitlines() if "stays new" in line]
    assert "fc" in line
    assert "[1000, 512]" in line
    # A report prepares the images in the same way.
    (runs,), _ = compare([read_run(run)])
    seen = disagreements(runs.groups[0], "unbiased")
    counted = rebias_dist.load(run, runs.groups[0].counting)
    data = open_split(data_root(counted.config), "unbiased")
    right = [
        counted.predict(map(data.image, range(len(data))), network).argmax(1).numpy() == data.labels
        for network in ("f", "g0")
    ]
    assert seen.looked_at == len(data)
    assert seen.f_alone.count == (right[0] & ~right[1]).sum()
    assert seen.g_alone.count == (right[1] & ~right[0]).sum()


def test_a_run_gives_its_weights_and_its_normalisation(small_run, published):
    values = untested(small_run, method={"name": "vanilla"})
    resnet = {"name": "resnet18", "pretrained": True}
    train(values, "first", f=resnet)
    source = f"{values['runs_dir']}/first:last"
    train(values, "second", f={**resnet, "pretrained": source, "freeze": "backbone"})
    first, second = players(values, "first")["f"], players(values, "second")["f"]
    for name, value in second["network"].items():
        # Frozen: bit for bit, with the buffers of BatchNorm.
        assert torch.equal(value, first["network"][name]) == (not name.startswith("fc.")), name
    (group,) = second["optimizer"]["param_groups"]
    assert len(group["params"]) == 2
    second = rebias_dist.load(Path(values["runs_dir"]) / "second", "last")
    assert second.constants == IMAGENET_NORMALIZE
    # f.checkpoint does the same.
    train(values, "third", f={**resnet, "pretrained": False, "checkpoint": source[: -len(":last")]})
    third = rebias_dist.load(Path(values["runs_dir"]) / "third", "last")
    assert third.constants == IMAGENET_NORMALIZE
    small = {**values["f"], "pretrained": source}
    assert "f.pretrained" in refused(values, f=small)
    none = {**resnet, "pretrained": f"{values['runs_dir']}/none:best"}
    assert "no run with a checkpoint" in refused(values, f=none)


def test_weights_of_other_images_do_not_mix(small_run, published):
    values = untested(small_run)
    train(values, "colour", method={"name": "biased"})
    g = [{**values["g"][0], "checkpoint": f"{values['runs_dir']}/colour"}]
    f = {"name": "resnet18", "pretrained": True}
    assert "use weights that agree" in refused(values, f=f, g=g, method={"name": "flac"})
    train(values, "first", f=f, method={"name": "vanilla"})
    f = {"name": "resnet18", "checkpoint": f"{values['runs_dir']}/first"}
    assert "use weights that agree" in refused(values, f=f, g=g, method={"name": "flac"})
    both = {**g[0], "pretrained": True}
    with pytest.raises(ConfigError, match="pretrained is set too"):
        validate({**values, "g": [both]})


# --- the moving average ------------------------------------------------------------


def averages(values: dict, name: str) -> dict[str, torch.Tensor]:
    return players(values, name)["f"]["average"]


def test_the_average_is_restored_bit_for_bit_and_the_same_on_two_ranks(small_run):
    values = {**small_run, "f": {**small_run["f"], "ema": 0.6}, "max_steps": 6}
    whole = train(values, "whole")
    values["evaluate"] = {"final": "none"}
    train({**values, "max_steps": 3}, "stopped")
    train(values, "stopped")
    run_ranks(2, train, values, "ranks", timeout=1000)
    expected = averages(values, "whole")
    assert int(expected["n_averaged"]) == 6
    differences = []
    for name, value in expected.items():
        assert torch.equal(value, averages(values, "stopped")[name]), name
        differences.append((value - averages(values, "ranks")[name]).abs().max().item())
    print(f"largest difference on two ranks: {max(differences):.1e}")
    assert max(differences) < 1e-9
    for splits in (whole["checkpoints"]["last"]["splits"], whole["checkpoints"]["best"]["splits"]):
        for figures in splits.values():
            assert list(figures["networks"]) == ["f", "g0", "f_ema"]
            assert len(figures["hsic"]) == 1
    run = Path(values["runs_dir"]) / "whole"
    (last, _), problems = evaluate_all(
        [str(run)], [], None, None, None, torch.device("cpu"), Consensus()
    )
    assert not problems
    for split, figures in whole["checkpoints"]["last"]["splits"].items():
        assert last["splits"][split]["networks"] == figures["networks"]
        assert last["splits"][split]["kernel_quantiles"] == figures["kernel_quantiles"]
    assert "f_ema" in text([last])
    loaded = rebias_dist.load(run, "last")
    own = players(values, "whole")["f"]["network"]["fc.weight"]
    assert torch.equal(loaded.f.state_dict()["fc.weight"], own)
    assert torch.equal(loaded.f_ema.state_dict()["fc.weight"], expected["module.fc.weight"])
    assert not torch.equal(own, expected["module.fc.weight"])
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert loaded.predict(images, "f_ema").shape == (3, 10)


def test_only_f_has_an_average(small_run):
    with pytest.raises(ConfigError, match=r"g\.0\.ema: only f"):
        validate({**small_run, "g": [{"ema": 0.9}]})
