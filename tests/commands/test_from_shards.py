"""``rebias-train --data.root X`` alone reads from the shards what it needs."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from data_shards.__main__ import cli as shards_cli
from data_shards.format.manifest import INDEX_NAME, MANIFEST_NAME, load_manifest
from data_shards.format.writer import npy
from rebias_dist.commands.train import cli, parse_train
from rebias_dist.data import remote
from rebias_dist.data.split_names import TRIED
from rebias_dist.errors import ConfigError
from tests.data.attribute_splits import write_attributes
from tests.data.misbehaving_server import serving
from tests.data_shards.convert.test_index import sample, write_tar
from tests.evaluation.photographs import write


def images(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def shards(folder, *sizes, splits=("train", "selection", "val", "test"), dataset="birds"):
    for split in splits:
        sides = [sizes[i % len(sizes)] for i in range(8)]
        values = {"place": ["land", "water"] * 4}
        labels = [0, 1] * 4
        write_attributes(folder, split, labels, values, images=images(*sides), dataset=dataset)
    return str(folder)


def parsed(root, *flags):
    request = parse_train(["--data.root", root, *flags])
    assert not request.default
    return request.config, " ".join(request.notes)


def test_small_images_of_one_size(tmp_path):
    root = shards(tmp_path, (16, 16))
    config, notes = parsed(root)
    assert (config.data.dataset, config.data.root) == ("birds", root)
    assert config.data.test_splits == ["test", "val"]
    assert (config.data.augmentation, config.data.selection) == ("none", 0.1)
    assert (config.f.name, config.f.kernel_size) == ("simple_convnet", 7)
    assert "2 classes (landbird, waterbird), 8 training images, test splits test, val" in notes
    assert "images of 16 × 16 pixels f simple_convnet" in notes
    assert "attributes place" in notes


@pytest.mark.parametrize(
    ("sizes", "augmentation", "said"),
    [
        (((40, 40),), "none", "images of 40 × 40 pixels f resnet18, g bagnet18"),
        (((16, 20), (18, 16)), "crop_flip", "images of 16 × 20 to 18 × 16 pixels; they differ"),
    ],
)
def test_networks_and_augmentation_fit_the_images(tmp_path, sizes, augmentation, said):
    config, notes = parsed(shards(tmp_path, *sizes))
    assert config.data.augmentation == augmentation
    assert (config.f.name, config.g[0].name) == ("resnet18", "bagnet18")
    assert said in notes


@pytest.mark.parametrize("different", ["selection", "test"])
@pytest.mark.parametrize("sizes", [((16, 16), (20, 16)), ((40, 40),)])
def test_the_images_of_every_split_are_looked_at(tmp_path, different, sizes):
    """Else a run ends in its last evaluation, or tests images at another scale."""
    root = shards(tmp_path, (16, 16), splits=("train", "selection", "test"))
    shutil.rmtree(tmp_path / different)
    shards(tmp_path, *sizes, splits=(different,))
    config, notes = parsed(root)
    assert config.data.augmentation == "crop_flip"
    assert "they differ" in notes
    # A split that the run does not read has no say.
    shards(tmp_path, (16, 16), splits=("val",))
    wanted = parsed(root, "--data.test_splits", "[val]")[0].data.augmentation
    assert wanted == ("none" if different == "test" else "crop_flip")


def test_another_network_by_a_flag_has_no_fields_of_the_default_one(tmp_path):
    root = shards(tmp_path, (16, 16))
    flags = ["--f.feature", "layer3", "--f.name", "resnet18", "--g.0.name", "bagnet18"]
    config, _ = parsed(root, *flags)
    assert config.f.build_options() == {"feature": "layer3"}
    assert config.g[0].build_options() == {}
    kept, _ = parsed(root, "--f.width", "2", "--f.name", "simple_convnet")
    assert kept.f.build_options() == {"kernel_size": 7, "width": 2.0}
    given, _ = parsed(root, "--f.width", "2", "--f.name", "small:Small")
    assert given.f.build_options() == {"width": 2.0}
    # What is given counts.
    flags = ["--data.augmentation", "none", "--f.name", "simple_convnet", "--method", "group_dro"]
    config, _ = parsed(config.data.root, *flags)
    assert (config.data.augmentation, config.f.name) == ("none", "simple_convnet")
    assert config.method.name == "group_dro"


def test_tars_of_webp_that_another_program_wrote(tmp_path):
    (tmp_path / "classes.csv").write_text("wnid,class\nn0,cat\nn1,dog\n")
    for split in ("train", "test"):
        members = [m for i in range(6) for m in sample(f"{i}", i % 2, i, "WEBP")]
        tar = write_tar(tmp_path / split / "0.tar", members)
        named = ["--dataset", "pets", "--classes", str(tmp_path / "classes.csv")]
        assert shards_cli(["index", str(tar), *named, "--workers", "1"]) == 0
    config, notes = parsed(str(tmp_path))
    assert config.data.dataset == "pets"
    assert "images of 32 × 32 pixels f simple_convnet" in notes


def test_an_image_that_is_not_that_of_the_index_is_passed_over(tmp_path):
    root = shards(tmp_path, (16, 16))
    shard = next((tmp_path / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    at = content.index(b"IHDR") + 4
    content[at : at + 8] = (1000).to_bytes(4, "big") * 2
    shard.write_bytes(content)
    assert "images of 16 × 16 pixels f simple_convnet" in parsed(root)[1]


def test_without_selection_data_a_test_split_is_the_oracle(tmp_path):
    config, notes = parsed(shards(tmp_path, (16, 16), splits=("train", "test")))
    assert (config.data.selection, config.evaluate.monitor) == ("none", "test")
    assert "the test split test chooses the best checkpoint, an oracle" in notes


def test_shards_of_biased_mnist_keep_their_default(tmp_path):
    request = parse_train(["--data.root", shards(tmp_path, (16, 16), dataset="biased_mnist")])
    assert request.default
    assert request.config.data.dataset == "biased_mnist"
    assert request.config.method.lambda_f == 64


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        ((), "has no split 'train', no shards"),
        (("test",), "has no split 'train', only test"),
        (("train", "selection"), "has no test split beside selection, train"),
    ],
)
def test_a_folder_that_lacks_a_split_is_one_line(tmp_path, capsys, splits, named):
    with pytest.raises(SystemExit) as left:
        cli(["--data.root", shards(tmp_path, (16, 16), splits=splits), "--dry-run"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_the_plan_shows_all_that_was_read(tmp_path, capsys):
    root = shards(tmp_path, (16, 16))
    with pytest.raises(SystemExit) as left:
        cli(["--data.root", root, "--global-batch", "8", "--dry-run", "--evaluate.select=accuracy"])
    out = capsys.readouterr().out
    assert not left.value.code
    for text in (
        f"no --config given, so this is read from {root}:",
        "classes         2: landbird, waterbird",
        "images          16 × 16, normalised by the mean 0.5 0.5 0.5 and the deviation 0.5 0.5 0.5",
        "bias            place; aligned, from the training images: landbird: land, waterbird: ",
        "held out        selection 8; tests test 8, val 8",
        "best            chosen on selection by the accuracy",
    ):
        assert text in out


def test_a_small_data_set_has_a_global_batch_that_fits(tmp_path):
    config, notes = parsed(shards(tmp_path, (16, 16)))
    assert (config.global_batch, config.micro_batch) == (8, 8)
    assert "global batch 8, for there are fewer than 256 training images" in notes
    config, _ = parsed(config.data.root, "--global_batch", "4")
    assert (config.global_batch, config.micro_batch) == (4, 4)


def test_chosen_test_splits_are_those_of_the_plan(tmp_path):
    root = shards(tmp_path, (16, 16), splits=("train", "test", "val"))
    config, notes = parsed(root, "--data.test_splits", "[val]")
    assert (config.data.test_splits, config.evaluate.monitor) == (["val"], "val")
    assert "8 training images, test splits val" in notes


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("REBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    (tmp_path / "birds").mkdir()
    with serving(tmp_path / "birds") as found:
        yield found


@pytest.mark.parametrize("sizes", [((16, 16),), ((16, 20), (18, 16))])
@pytest.mark.parametrize("splits", [("train", "selection", "val", "test"), ("train", "test")])
def test_an_address_gives_what_its_folder_gives(server, sizes, splits):
    here, said = parsed(shards(server.folder, *sizes, splits=splits))
    there, notes = parsed(f"{server.url}/")
    assert there.data.root == server.url
    assert there.model_dump() == {
        **here.model_dump(), "data": {**here.data.model_dump(), "root": server.url}
    }  # fmt: skip
    found = f"splits found: {', '.join(sorted(splits))} (tried {', '.join(TRIED)}; name others "
    assert found in notes
    expected = said.replace(str(server.folder), server.url)
    begin, _, end = notes.replace(" pixels in the first shard of each split", " pixels").partition(
        found
    )
    assert begin + end.partition("'[NAME]') ")[2] == expected


def test_other_test_splits_at_an_address_are_named(server):
    shards(server.folder, (16, 16), splits=("train", "selection", "night"))
    with pytest.raises(ConfigError, match=r"no test split beside .* name others with --data.test"):
        parsed(server.url)
    config, notes = parsed(server.url, "--data.test_splits", "[night]", "--data.cache_gb=1")
    assert (config.data.test_splits, config.data.cache_gb) == (["night"], 1)
    assert "test splits night" in notes
    assert "tried" not in notes


def test_one_shard_of_each_split_is_fetched_and_the_cache_keeps_its_bound(server, tmp_path):
    for split, labels in (("train", [0, 1, 2]), ("test", [2, 1, 0])):
        write(server.folder, split, labels * 10)
    fetched = tmp_path / "cache/fetched"
    fetched.mkdir(parents=True)
    (fetched / f"{'0' * 64}.tar").write_bytes(bytes(10_000))
    _, notes = parsed(server.url, "--data.cache_gb", "2e-5")
    assert "images of 12 × 12 pixels" in notes
    fetches = {name: n for name, n in server.requests.items() if name != "manifest.json"}
    assert fetches == {"train-000000.tar": 1, "test-000000.tar": 1, "index.npy": 2}
    (kept,) = fetched.glob("*.tar")
    last = {load_manifest(server.folder / split).shards[0].sha256 for split in ("train", "test")}
    assert kept.stem in last


def test_faults_of_a_server_are_one_line(server, capsys):
    def refused(*flags: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            cli(["--data.root", server.url, *flags, "--dry-run"])
        (line,) = capsys.readouterr().err.splitlines()
        return left.value.code, line

    code, line = refused()
    assert (code, "has no split 'train', no shards" in line) == (2, True)
    shards(server.folder, (16, 16))
    for fault, expected, said in (
        ("403", 2, "access is denied (403"),
        ("500", 1, "train/manifest.json: 500"),
        ("changed", 3, "train/manifest.json: "),
    ):
        server.faults = {"train/manifest.json": fault}
        code, line = refused()
        assert (code, said in line) == (expected, True), line
    server.faults = {"train-000000.tar": "changed"}
    assert refused()[0] == 3
    server.faults = {}
    code, line = refused("--data.test_splits", "[tset]")
    assert code == 3
    assert f"{server.url}/tset/manifest.json: there is no such file (404)" in line
    assert f"; {server.url} has selection, test, train, val (data.train_split and" in line
    # Who may not list a bucket of S3 is denied what is not there; some web servers send a page.
    server.faults = {f"{name}/manifest.json": "403" for name in ("dev", "valid", "val")}
    assert parsed(server.url)[0].data.test_splits == ["test"]
    page = server.folder / "dev/manifest.json"
    page.parent.mkdir()
    page.write_text("<!DOCTYPE html>")
    server.faults = {}
    assert parsed(server.url)[0].data.test_splits == ["test", "val"]


def test_an_empty_training_split_is_one_line(server, capsys):
    root = shards(server.folder, (16, 16))
    train = server.folder / "train"
    empty = npy(np.load(train / INDEX_NAME)[:0])
    (train / INDEX_NAME).write_bytes(empty)
    manifest = load_manifest(train).model_copy(
        update={
            **{"samples": 0, "class_counts": (0, 0), "shards": (), "attributes": (), "files": {}},
            "index_sha256": hashlib.sha256(empty).hexdigest(),
        }
    )
    (train / MANIFEST_NAME).write_bytes(manifest.to_json())
    for place in (root, server.url):
        with pytest.raises(SystemExit) as left:
            cli(["--data.root", place, "--dry-run"])
        assert left.value.code == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{place}/train: has no readable image" in line


def test_a_wrong_test_split_names_those_that_are_there(tmp_path, capsys):
    root = shards(tmp_path, (16, 16), splits=("train", "val"))

    def refused(*flags: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli(["--data.root", root, "--config", "imagenet9/rebias", *flags, "--dry-run"])
        assert left.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    birds = ("--data.dataset", "birds", "--data.selection")
    line = refused(*birds, "none", "--data.test_splits", "[tset]", "--evaluate.monitor", "tset")
    assert "tset: there are no shards here; " in line
    assert (
        f"; {root} has train, val (data.train_split and data.test_splits name those to use)" in line
    )
    line = refused(*birds, "0.1", "--data.test_splits", "[val]")
    assert f"; {root} has train, val (data.selection none does without)" in line
    assert "data.test_splits: 'val': a list is needed, such as '[val]'" in refused(
        "--data.test_splits", "val"
    )
