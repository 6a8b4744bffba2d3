"""Clusters computed from images: Gram features, k-means, the command."""

import io
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from data_shards.__main__ import cli
from data_shards.format.manifest import load_split
from data_shards.images.clusters import read_clusters
from data_shards.images.sheets import Strip, sheet
from data_shards.images.textures import Layer, Textures, cluster, prepare
from tests.data_shards.small_split import encoded, noise, write_split


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of VGG-16 up to conv3_3, as torchvision names them."""
    torch.manual_seed(0)
    features = torchvision.models.vgg16(weights=None).features[:15]
    for parameter in features.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """Twenty-four images of four textures, in random colours and places; two classes."""
    rng = np.random.default_rng(1)
    side = 224
    y, x = np.mgrid[:side, :side]
    samples = []
    for number in range(24):
        shift = rng.integers(0, 32)
        plane = [
            (x + shift) // 4 % 2,  # thin upright stripes
            (y + shift) // 4 % 2,  # thin level ones
            ((x + shift) // 32 + (y + shift) // 32) % 2,  # large squares
            rng.integers(0, 2, (side, side)),  # noise
        ][number % 4]
        low, high = rng.uniform(60, 80), rng.uniform(170, 190)
        image = Image.fromarray((low + plane * (high - low)).astype(np.uint8)).convert("RGB")
        samples.append((f"{number}.png", number // 12, image))
    classes = ["one", "two"]
    return write_split(tmp_path_factory.mktemp("textures"), "val", classes, samples, kind="PNG")


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        *(("RGB", (300, 200)), ("L", (31, 257)), ("CMYK", (256, 256)), ("P", (28, 28))),
        ("I;16", (60, 50)),
    ],
)
def test_images_are_prepared_as_torchvision_would(mode, size):
    kind = "PNG" if mode in ("P", "I;16") else "JPEG"
    image = noise(3, size).convert("L" if mode == "I;16" else mode)
    content = encoded(_deep(image) if mode == "I;16" else image, kind)
    reference = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )((image if mode == "I;16" else Image.open(io.BytesIO(content))).convert("RGB"))
    np.testing.assert_allclose(prepare(content), reference.numpy(), atol=1e-5)


def _deep(grey: Image.Image) -> Image.Image:
    """The same in 16 bits."""
    return Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 77)


def test_the_sheet_shows_16_bits_as_it_shows_8():
    grey = noise(5, (40, 30)).convert("L")
    pages = [sheet("t", [Strip("s", [encoded(i, "PNG")])], 1) for i in (grey, _deep(grey))]
    assert pages[0] == pages[1]


def test_rows_are_normalised_gram_matrices_before_the_relu(weights):
    images = [encoded(noise(n, (80, 60))) for n in range(3)]
    rows = np.stack([Textures(Layer("vgg16", "conv3_3", weights))(image) for image in images])
    layers = torchvision.models.vgg16(weights=None).features[:15]
    layers.load_state_dict(
        {k.removeprefix("features."): v for k, v in torch.load(weights, weights_only=True).items()}
    )
    grams = []
    for image in images:
        with torch.no_grad():
            planes = layers.double()(torch.from_numpy(prepare(image)).double()[None])[0]
        assert planes.min() < 0  # no ReLU has passed
        gram = torch.einsum("ixy,jxy->ij", planes, planes)
        assert gram.shape == (256, 256)
        grams.append((gram / torch.linalg.matrix_norm(gram)).numpy().ravel())
    slow = np.stack(grams)
    np.testing.assert_allclose(rows @ rows.T, slow @ slow.T, atol=1e-5)
    distances = [((m[:, None] - m[None]) ** 2).sum(-1) for m in (rows.astype(float), slow)]
    np.testing.assert_allclose(*distances, atol=1e-5)


def test_kmeans_finds_the_best_of_all_partitions():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(c, 0.3, (3, 5)) for c in (0, 2, 4)]).astype(np.float32)

    def spread(labels):
        parts = [rows[np.array(labels) == label] for label in set(labels)]
        return sum(((part - part.mean(0)) ** 2).sum() for part in parts)

    best = min(
        (labels for labels in itertools.product(range(3), repeat=9) if len(set(labels)) == 3),
        key=spread,
    )
    assert spread(cluster(rows, 3, seed=5).tolist()) == pytest.approx(spread(best))


def _command(split, weights, *arguments):
    layer = ["--layer", "conv1_2", "--clusters", "4"]
    return ["cluster", str(split), "--weights", str(weights), *layer, "--json", *arguments]


def test_textures_are_told_apart_and_the_workers_do_not_matter(textures, weights, tmp_path, capsys):
    _, index = load_split(textures)
    # Which texture an image has, in the order of the shards.
    truth = np.array([int(key.decode()[1:]) % 4 for key in index["key"].tolist()])
    written = []
    for workers in ("1", "2"):
        sheets = tmp_path / workers
        command = _command(textures, weights, "--workers", workers, "--sheets", str(sheets))
        assert cli(command) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["layer"] == "features.2"
        assert report["seeds"] == [0, 1, 2]
        path = textures / "clusters.csv"
        found = read_clusters(textures, index)
        assert found.shape == (3, 24)
        for clusters in found:
            # The same partition: each texture is one cluster.
            assert len(set(zip(truth, clusters, strict=True))) == 4
            assert len(set(clusters.tolist())) == 4
        pictures = sorted(path.name for path in sheets.iterdir())
        assert pictures == [f"cluster{n}-{value}.png" for n in (1, 2, 3) for value in range(4)]
        written.append([path.read_bytes(), *((sheets / name).read_bytes() for name in pictures)])
        path.unlink()
    assert written[0] == written[1]
    assert sorted(path.name for path in textures.iterdir() if path.suffix != ".tar") == [
        "index.npy", "manifest.json",
    ]  # fmt: skip


def test_any_network_and_layer(textures, tmp_path, capsys):
    network = torchvision.models.squeezenet1_1(weights=None)
    torch.save(network.state_dict(), tmp_path / "squeezenet.pth")
    command = ["cluster", str(textures), "--weights", str(tmp_path / "squeezenet.pth")]
    layer = ["--network", "squeezenet1_1", "--layer", "features.3.squeeze", "--clusters", "2"]
    assert cli([*command, *layer]) == 0
    assert "squeezenet1_1 features.3.squeeze" in capsys.readouterr().out
    (textures / "clusters.csv").unlink()


class _Shell:
    """What a pickle runs when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--weights"], "--weights"),
        (["--layer", "conv3_4"], "near names: conv"),
        (["--layer", "classifier.0"], "classifier.0"),
        (["--layer", "avgpool"], "has no features.17.weight"),
        (["--network", "vgg61"], "vgg61"),
        (["--network", "vgg11"], "conv1_2"),
        (["--network", "resnet18", "--layer", "conv1"], "has no conv1.weight"),
        (["--network", "alexnet", "--layer", "features.0"], "does not fit"),
        (["--clusters", "25"], "24 images make no 25 clusters"),
        (["--clusters", "1"], "--clusters"),
        (["--scratch", "/nonexistent"], "/nonexistent"),
        (["--import", "x.csv"], "--import"),
    ],
)
def test_wrong_use_is_one_line(textures, weights, capsys, change, words):
    command = _command(textures, weights)
    if change == ["--weights"]:
        del command[2:4]
    else:
        command += change
    assert cli(command) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert not (textures / "clusters.csv").exists()


def test_weights_are_data_alone(textures, tmp_path, capsys):
    trace = str(tmp_path / "unpickled")
    torch.save({"features.0.weight": _Shell(trace)}, tmp_path / "shell.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("shell.pth", "text.pth", "list.pth", "missing.pth"):
        assert cli(_command(textures, tmp_path / name)) == 2
        shown = capsys.readouterr().err
        assert name in shown
        assert shown.count("\n") == 1
    assert not os.path.exists(trace)


def test_clusters_that_are_there_are_not_computed_again(textures, weights, capsys):
    path = textures / "clusters.csv"
    path.write_text("key,cluster1\n")
    try:
        assert cli(_command(textures, weights)) == 2
        assert "there already" in capsys.readouterr().err
    finally:
        path.unlink()


def test_a_damaged_image_is_named(tmp_path, weights, capsys):
    samples = [(f"{n}.png", 0, noise(n)) for n in range(5)]
    split = write_split(tmp_path, "val", ["one"], samples)
    manifest, index = load_split(split)
    shard = split / manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    content[int(index["offset"][3]) + 100] ^= 1
    shard.write_bytes(content)
    assert cli(_command(split, weights)) == 1
    assert f"{shard.name}: k3: is not the image" in capsys.readouterr().err
    assert not (split / "clusters.csv").exists()


@pytest.mark.parametrize("command", ["gather", "inspect", "cluster"])
def test_help_has_an_example_and_imports_nothing_heavy(command):
    script = (
        "import sys, data_shards.__main__ as m\n"
        f"try: m.cli(['{command}', '--help'])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'sklearn', 'webdataset', 'aiohttp', 'rebias_dist'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=1000, check=True
    ).stdout
    assert shown.endswith("0 []\n")
    assert f"python -m data_shards {command} " in shown
