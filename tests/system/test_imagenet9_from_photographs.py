"""From photographs to the unbiased accuracy: convert, cluster, verify, train, evaluate."""

import csv
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.classes import shipped_class_map
from data_shards.format.manifest import load_split
from data_shards.images.clusters import read_clusters

TRAIN, VAL = 8, 24  # images of a class; validation images fall into two clusters of 12
# Found, not imported: importing it takes seconds.
PACKAGE = Path(importlib.util.find_spec("foolbox").origin).parent
PHOTOGRAPHS = sorted((PACKAGE / "data").glob("imagenet_*.jpg"))


def shards(*arguments: object) -> str:
    command = [sys.executable, "-m", "data_shards", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def photograph(rng: np.random.Generator) -> bytes:
    """A random piece of a real photograph, of a size of its own."""
    with Image.open(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]) as image:
        width, height = (int(size) for size in rng.integers(70, 120, 2))
        left, top = (int(at) for at in rng.integers(0, 60, 2))
        piece = image.convert("RGB").crop((left, top, left + width, top + height))
    stream = io.BytesIO()
    piece.save(stream, "JPEG", quality=85)
    return stream.getvalue()


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Class folders with real wnids, one image cut short; a list of clusters that lacks one."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    wnid_of = {label: wnid for wnid, label in shipped_class_map("imagenet9").labels.items()}
    number = 0
    clusters = [["path", "category", "cluster1", "cluster2", "cluster3"]]
    for label in range(9):
        wnid = wnid_of[label]
        for split, count in (("train", TRAIN), ("val", VAL)):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                number += 1
                name = f"{wnid}_{i}.JPEG" if split == "train" else f"val_{number:08d}.JPEG"
                content = photograph(rng)
                cut_short = split == "train" and label == i == 0
                (folder / name).write_bytes(content[:-200] if cut_short else content)
                if split == "val" and not label == i == 0:
                    where = [f"{wnid}/{name}", shipped_class_map("imagenet9").classes[label]]
                    clusters.append([*where, i % 2, (i // 2) % 2, i % 2])
    with (root / "clusters.csv").open("w", newline="") as file:
        csv.writer(file).writerows(clusters)
    return root


def test_from_photographs_to_the_unbiased_accuracy(tree, tmp_path):
    # ------------------------------------------------------------ shards, without what is damaged
    root = tmp_path / "imagenet9"
    with_selection = ("--selection-fraction", "0.125", "--max-corrupt", "1", "--workers", "1")
    for split in ("train", "selection"):
        source = ("--source", tree / "train", "--split", split, "--output", root)
        shards("convert", "imagenet9", *source, *with_selection)
    source = ("--source", tree / "val", "--split", "val", "--output", root)
    shards("convert", "imagenet9", *source, "--workers", "1")
    manifests = {split: load_split(root / split)[0] for split in ("train", "selection", "val")}
    assert manifests["train"].classes[0] == shipped_class_map("imagenet9").classes[0]
    assert manifests["train"].samples + manifests["selection"].samples == 9 * TRAIN - 1
    assert manifests["selection"].class_counts[1:] == (1,) * 8
    (left_out,) = manifests["train"].excluded + manifests["selection"].excluded
    assert left_out.reasons == ("truncated",)
    assert manifests["val"].class_counts == (VAL,) * 9

    # ------------------------------------------------------------ clusters, by name
    shards("cluster", root / "val", "--import", tree / "clusters.csv")
    for split in manifests:
        shards("verify", root / split)
    index = load_split(root / "val")[1]
    clusterings = read_clusters(root / "val", index)
    assert (clusterings < 0).sum() == 3  # the image that the list lacks, in three clusterings

    # ------------------------------------------------------------ two steps of ResNet and BagNet
    flags = ["--config", "imagenet9/rebias", "--name", "a", "--runs-dir", tmp_path / "runs"]
    flags += ["--data.root", root, "--data.resize", "72", "--data.crop", "64", "--max-steps", "2"]
    flags += ["--global-batch", "16", "--micro-batch", "8", "--data.workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "rebias_dist.train", *map(str, flags)],
        capture_output=True, text=True, timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "runs/a/results.json").read_text())
    figures = results["checkpoints"]["last"]["splits"]["val"]
    assert figures["samples"] == 9 * VAL

    # ------------------------------------------------------------ the unbiased accuracy of f
    from rebias_dist import load
    from rebias_dist.data import EvalTransform, open_split
    from rebias_dist.data.normalisation import Normalise

    import torch  # isort: skip

    run = load(tmp_path / "runs/a")
    data = open_split(root, "val", dataset="imagenet9")
    normalise = Normalise(data.manifest.normalize, torch.device("cpu"))
    see = EvalTransform(72, 64)
    images = torch.stack([see(data.image(i), 0, i) for i in range(len(data))])
    with torch.no_grad():
        predictions = run.f(normalise(images))[0].argmax(1).numpy()
    labels = index["label"].astype(np.int64)
    cells = [
        (predictions == labels)[(labels == label) & (clustering == cluster)].mean()
        for clustering in clusterings
        for label in range(9)
        for cluster in (0, 1)
    ]
    assert figures["networks"]["f"]["unbiased"] == pytest.approx(np.mean(cells), abs=2 / 24)
    accuracy = figures["networks"]["f"]["accuracy"]
    assert (predictions == labels).mean() == pytest.approx(accuracy, abs=2 / len(labels))
