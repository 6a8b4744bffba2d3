"""ResNet and BagNet on shards of JPEG images: the shape of the ImageNet runs, made small."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_shards.manifest import Normalize
from data_shards.writer import Plan, split_writer
from rebias_dist.cli import parse_train
from rebias_dist.train import main

CLASSES = ("dog", "cat", "frog", "turtle", "bird", "monkey", "fish", "crab", "insect")


def _jpeg(rng, label: int) -> tuple[bytes, tuple[int, int]]:
    size = tuple(int(s) for s in rng.integers(60, 120, 2))
    pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8) // 2
    pixels[..., label % 3] += np.uint8(10 * label)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue(), size


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet9")
    rng = np.random.default_rng(0)
    for split, count in (("train", 45), ("selection", 9), ("val", 13)):
        plan = Plan(
            dataset="imagenet9",
            split=split,
            classes=CLASSES,
            options={},
            normalize=Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            samples_per_shard=20,
        )
        with split_writer(root, plan) as writer:
            for i in range(count):
                image, size = _jpeg(rng, i % 9)
                writer.write(f"{split}-{i:05}", image, i % 9, source=f"{i}.JPEG", size=size)
    return root


@pytest.mark.parametrize("method", ["rebias", "learned_mixin"])
def test_the_shipped_configuration_trains(shards, tmp_path, method):
    flags = ["--config", f"imagenet9/{method}", "--name", "a", "--runs-dir", str(tmp_path)]
    flags += ["--data.root", str(shards), "--data.resize", "72", "--data.crop", "64"]
    flags += ["--global-batch", "16", "--micro-batch", "8", "--log.every_steps", "1"]
    flags += ["--data.workers", "1", "--max-steps", "2"]
    if method == "learned_mixin":  # one epoch of pretraining, then the game
        flags += ["--method.g_pretrain_epochs", "1", "--max-steps", "4"]
    found = main(parse_train(flags).config)
    figures = found["checkpoints"]["last"]["splits"]["val"]
    assert figures["samples"] == 13
    for network in ("f", "g0"):
        assert np.sum(figures["networks"][network]["confusion"]) == 13
        assert figures["networks"][network]["bias_count"] == [[]] * 9  # no bias is known here
    assert np.isfinite(figures["hsic"][0])
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    if method == "rebias":
        assert all(line["f/sigma"] > 0 for line in lines if "f/loss" in line)
    assert all(np.isfinite(line["f/loss"]) for line in lines if "f/loss" in line)
