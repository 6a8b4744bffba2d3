"""Every shipped configuration plans for its ranks and trains, on small shards of its kind."""

import json

import numpy as np
import pytest

from rebias_dist.commands.train import cli, parse_train
from rebias_dist.config.files import config_comment, list_configs, read_config_file, validate
from rebias_dist.methods.registry import METHODS
from rebias_dist.train import main
from tests.support.imagenets import write_imagenet

SHIPPED = [name for name, _ in list_configs()]
IMAGENETS = [name for name in SHIPPED if name.startswith("imagenet")]
NAMES = {
    "imagenet9": {
        *("rebias", "vanilla", "biased", "rubi", "learned_mixin", "stylised"),
        *("lff", "softcon", "flac", "rebias_n256", "rebias_n512", "rebias_gpu"),
    },
    "biased_mnist": {*METHODS, "demo"},
    "imagenet1k": {"rebias", "rebias_n1024"},
}
LARGER = [name for name in SHIPPED if "_n" in name or name.endswith("_gpu")]


def test_all_are_there():
    assert {tuple(name.split("/")) for name in SHIPPED} == {
        (folder, name) for folder, names in NAMES.items() for name in names
    }


def test_there_is_a_configuration_for_8_16_and_32_ranks():
    """The larger ones differ in the batch, and in the learning rate by the rule that they name."""
    most = {}
    for name in SHIPPED:
        config = validate(read_config_file(name))
        most.setdefault(name.split("/")[0], set()).add(config.global_batch // config.b)
    assert most == {"imagenet9": {8, 16, 32}, "imagenet1k": {8, 32}, "biased_mnist": {8}}
    for name in LARGER:
        base = read_config_file(name.partition("_n")[0].removesuffix("_gpu"))
        larger = read_config_file(name)
        times = larger["global_batch"] / base["global_batch"]
        rate = base["optimizer"]["lr"]
        rate *= times**0.5 if base["optimizer"]["name"] == "adamp" else times
        assert larger["optimizer"]["lr"] == pytest.approx(rate, rel=0.02)
        changed = {key: base[key] for key in ("global_batch", "optimizer")}
        if name.endswith("_gpu"):
            changed["micro_batch"] = base["micro_batch"]
        assert {**larger, **changed} == base
        opening = config_comment(name)
        for part in ("Command:", "Cost:", "Expect:", "Protocol:"):
            assert part in opening


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Shards for the smallest epoch of the shipped configurations: one global batch.

    Those of ``large`` are for the largest batch. The others make short runs.
    """
    folder = tmp_path_factory.mktemp("shards")
    few = {"selection": 9, "val": 13}
    roots = {
        "imagenet9": write_imagenet(folder / "nine", "imagenet9", train=130, **few),
        "imagenet9/stylised": folder / "both",
        "imagenet1k": write_imagenet(folder / "all", "imagenet1k", train=257, **few),
        "large/imagenet9": write_imagenet(folder / "large9", "imagenet9", train=513, **few),
        "large/imagenet1k": write_imagenet(folder / "large1k", "imagenet1k", train=1025, **few),
        "imagenet9-a": write_imagenet(folder / "adversarial", "imagenet9-a", test=8),
    }
    write_imagenet(folder / "both", "imagenet9", stylised=True, train=130, **few)
    return roots


def _flags(name, roots):
    root = "large/" * (name in LARGER) + name.split("/")[0]
    return ["--config", name, "--data.root", str(roots.get(name) or roots[root])]


def _ordinary(names):
    """Mark as slow those whose method is no other way of training than one of the others."""
    alike = ("lff", "spectral_decoupling", "flac", "badd", "bias_balance", "group_dro")
    alike += ("fairkl", "end")
    return [
        pytest.param(name, marks=pytest.mark.slow) if name.rpartition("/")[2] in alike else name
        for name in names
    ]


def _two_steps_of_the_game(name, steps_per_epoch):
    """Return the flags for two steps after one epoch of pretraining, where there is any."""
    (key,) = [key for key in read_config_file(name)["method"] if "pretrain" in key] or [None]
    if key is None:
        return ["--max-steps", "2"]
    return [f"--method.{key}", "1", "--max-steps", str(steps_per_epoch + 2)]


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "biased_mnist/demo"])
def test_the_plan_for_as_many_ranks_as_fit(roots, few_digits, name, monkeypatch, capsys):
    config = validate(read_config_file(name))
    ranks = config.global_batch // config.b
    flags = _flags(name, roots) if name in IMAGENETS else ["--config", name]
    if name not in IMAGENETS:
        flags += ["--data.source", str(few_digits)]
    for key, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(SystemExit) as left:
        cli([*flags, "--dry-run"])
    assert not left.value.code
    plan = capsys.readouterr().out
    assert f"W = {ranks} ranks, A = 1 micro-batches on each" in plan
    assert "simplejpeg" in plan  # what decodes is part of the plan


@pytest.mark.parametrize("name", IMAGENETS)
def test_missing_shards_are_one_line_with_the_cure(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli(["--config", name, "--dry-run"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    folder = name.split("/")[0]
    root = f"shards/{folder}" + "-stylised" * name.endswith("stylised")
    assert f"{root}/train: there are no shards here" in line
    assert f"python -m data_shards convert {folder} --source PATH --split train" in line
    assert f"--output {root}'" in line


@pytest.mark.parametrize("name", _ordinary([n for n in IMAGENETS if n not in LARGER]))
def test_two_steps(roots, tmp_path, name):
    flags = [*_flags(name, roots), "--name", "a", "--runs-dir", str(tmp_path)]
    flags += ["--data.resize", "48", "--data.crop", "40", "--radius.fraction", "0.01"]
    flags += ["--global-batch", "16", "--micro-batch", "8", "--log.every_steps", "1"]
    flags += ["--data.workers", "1", *_two_steps_of_the_game(name, 130 // 16)]
    flags += ["--evaluate.batch", "8", "--log.to", "[]"]
    if name == "imagenet9/vanilla":
        tests = {"imagenet-a": str(roots["imagenet9-a"] / "test")}
        flags += ["--data.other_tests", json.dumps(tests)]
    config = parse_train(flags).config
    splits = main(config)["checkpoints"]["last"]["splits"]
    figures = splits["val"]
    assert figures["samples"] == 13
    assert set(figures["networks"]) == set(["f"] * config.has_f + ["g0"] * config.has_g)
    for network in figures["networks"].values():
        assert np.sum(network["confusion"]) == 13
        assert not any(network["bias_count"])  # no bias is known here
    if config.has_f and config.has_g:
        assert np.isfinite(figures["hsic"][0])
    if name == "imagenet9/vanilla":
        assert splits["imagenet-a"]["samples"] == 8
    _check_losses(tmp_path / "a/metrics.jsonl", config)


@pytest.mark.parametrize("name", _ordinary([n for n in SHIPPED if n.startswith("biased_mnist")]))
def test_two_steps_on_digits(few_digits, tmp_path, name):
    flags = ["--config", name, "--data.source", str(few_digits), "--data.image_size", "14"]
    flags += ["--name", "a", "--runs-dir", str(tmp_path), "--log.every_steps", "1"]
    flags += ["--global-batch", "48", "--micro-batch", "24", "--log.to", "[]"]
    flags += _two_steps_of_the_game(name, 432 // 48)  # a tenth of the digits is held out
    config = parse_train(flags).config
    splits = main(config)["checkpoints"]["last"]["splits"]
    assert set(splits) >= {"biased", "unbiased", "rho0"}
    for figures in splits.values():
        assert set(figures["networks"]) == set(["f"] * config.has_f + ["g0"] * config.has_g)
        for network in figures["networks"].values():
            assert np.sum(network["confusion"]) == figures["samples"]
            assert np.sum(network["bias_count"]) == figures["samples"]
    _check_losses(tmp_path / "a/metrics.jsonl", config)


def _check_losses(metrics, config):
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    player = "f" if config.has_f else "g0"
    losses = [line[f"{player}/loss"] for line in lines if f"{player}/loss" in line]
    assert len(losses) >= 2
    assert np.isfinite(losses).all()
    if config.method.name == "rebias":
        assert all(line["f/sigma"] > 0 for line in lines if "f/loss" in line)


@pytest.mark.parametrize(
    ("name", "words"),
    [("far", "label 0 is n01440764, not dog"), ("val", "val is the name of another split")],
)
def test_other_tests_have_the_same_classes_and_names_of_their_own(roots, capsys, name, words):
    tests = json.dumps({name: str(roots["imagenet1k"] / "val")})
    flags = [*_flags("imagenet9/vanilla", roots), "--dry-run", "--data.other_tests", tests]
    with pytest.raises(SystemExit) as left:
        cli(flags)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_some_of_the_classes_are_no_further_test_but_can_be_evaluated(roots, tmp_path, capsys):
    """ImageNet-A has 200 of the 1,000 classes."""
    some = write_imagenet(tmp_path, "imagenet-a", test=8) / "test"
    tests = json.dumps({"imagenet-a": str(some)})
    flags = [*_flags("imagenet1k/rebias", roots), "--dry-run", "--data.other_tests", tests]
    with pytest.raises(SystemExit) as left:
        cli(flags)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "its 200 classes are not the 1000 of the training data" in line
    assert f"'rebias-evaluate RUN --on {some}'" in line
