"""Every shipped configuration plans for eight ranks and trains, on small shards of its kind."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_shards.format.manifest import Normalize
from data_shards.format.writer import Plan, split_writer
from data_shards.sources.datasets import dataset
from rebias_dist.commands.train import cli, parse_train
from rebias_dist.config.files import list_configs, read_config_file
from rebias_dist.methods.registry import METHODS
from rebias_dist.train import main

SHIPPED = [name for name, _ in list_configs()]
IMAGENETS = [name for name in SHIPPED if name.startswith("imagenet")]
NAMES = {
    "imagenet9": {
        *("rebias", "vanilla", "biased", "rubi", "learned_mixin", "stylised"),
        *("lff", "softcon", "flac"),
    },
    "biased_mnist": {*METHODS, "demo"},
    "imagenet1k": {"rebias"},
}


def test_all_are_there():
    assert {tuple(name.split("/")) for name in SHIPPED} == {
        (folder, name) for folder, names in NAMES.items() for name in names
    }


def _jpeg(rng, label: int) -> tuple[bytes, tuple[int, int]]:
    size = tuple(int(s) for s in rng.integers(60, 120, 2))
    pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8) // 2
    pixels[..., label % 3] += np.uint8(10 * (label % 9))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue(), size


def _write(root, name, *, stylised=False, **splits):
    rng = np.random.default_rng(0)
    classes = dataset(name).class_map.classes
    for split, count in splits.items():
        plan = Plan(
            dataset=name,
            split=split,
            classes=classes,
            options={},
            normalize=Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            samples_per_shard=40,
        )
        with split_writer(root, plan) as writer:
            for i in range(count):
                label = i % len(classes)
                image, size = _jpeg(rng, label)
                key, flags = f"{split}-{i:05}", ()
                if stylised and split == "train" and i % 2:  # as convert --stylised writes them
                    key, flags = f"stylised_{key}", ("stylised",)
                writer.write(key, image, label, source=f"{i}.JPEG", size=size, flags=flags)
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Shards for the smallest epoch of the shipped configurations: one global batch."""
    folder = tmp_path_factory.mktemp("shards")
    return {
        "imagenet9": _write(folder / "nine", "imagenet9", train=130, selection=9, val=13),
        "imagenet9/stylised": _write(
            folder / "both", "imagenet9", stylised=True, train=130, selection=9, val=13
        ),
        "imagenet1k": _write(folder / "all", "imagenet1k", train=257, selection=9, val=13),
        "imagenet9-a": _write(folder / "adversarial", "imagenet9-a", test=8),
    }


def _flags(name, roots):
    return ["--config", name, "--data.root", str(roots.get(name) or roots[name.split("/")[0]])]


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
def test_the_plan_for_eight_ranks(roots, few_digits, name, monkeypatch, capsys):
    flags = _flags(name, roots) if name in IMAGENETS else ["--config", name]
    if name not in IMAGENETS:
        flags += ["--data.source", str(few_digits)]
    for key, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 8, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(SystemExit) as left:
        cli([*flags, "--dry-run"])
    assert not left.value.code
    plan = capsys.readouterr().out
    assert "W = 8 ranks, A = 1 micro-batches on each" in plan
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


@pytest.mark.parametrize("name", _ordinary(IMAGENETS))
def test_two_steps(roots, tmp_path, name):
    flags = [*_flags(name, roots), "--name", "a", "--runs-dir", str(tmp_path)]
    flags += ["--data.resize", "48", "--data.crop", "40", "--radius.fraction", "0.01"]
    flags += ["--global-batch", "16", "--micro-batch", "8", "--log.every_steps", "1"]
    flags += ["--data.workers", "1", *_two_steps_of_the_game(name, 130 // 16)]
    flags += ["--evaluate.batch", "8"]
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
    flags += ["--global-batch", "48", "--micro-batch", "24"]
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
    some = _write(tmp_path, "imagenet-a", test=8) / "test"
    tests = json.dumps({"imagenet-a": str(some)})
    flags = [*_flags("imagenet1k/rebias", roots), "--dry-run", "--data.other_tests", tests]
    with pytest.raises(SystemExit) as left:
        cli(flags)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "its 200 classes are not the 1000 of the training data" in line
    assert f"'rebias-evaluate RUN --on {some}'" in line
