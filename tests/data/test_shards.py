import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.format.manifest import Normalize
from data_shards.format.writer import Plan, split_writer
from rebias_dist.data import ShardDataset, open_split, root_and_split
from rebias_dist.errors import ConfigError, DataError


@pytest.fixture
def split(shards, tmp_path):
    return shutil.copytree(shards / "train", tmp_path / "train")


def _encoded(array, format, **options):
    stream = io.BytesIO()
    Image.fromarray(array, **options).save(stream, format)
    return stream.getvalue()


def _toy(folder, *images):
    plan = Plan(
        dataset="toy", split="train", classes=("a", "b"), options={},
        normalize=Normalize(mean=(0.5,) * 3, std=(0.5,) * 3), samples_per_shard=2,
    )  # fmt: skip
    with split_writer(folder, plan) as writer:
        for number, image in enumerate(images):
            writer.write(f"k{number}", image, number % 2, source=f"s{number}", size=(1, 1))
    return ShardDataset(folder / "train")


def test_images_labels_and_bias_are_those_of_the_tars(shards):
    dataset = ShardDataset(shards / "train")
    dataset.check_files()
    i = 0
    for shard in dataset.manifest.shards:
        with tarfile.open(shards / "train" / shard.name) as tar:
            for name in sorted({m.name.split(".")[0] for m in tar}, key=_position(tar)):
                content = tar.extractfile(f"{name}.png").read()
                assert dataset.key(i) == name
                assert dataset.read(i) == content
                pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(content))))
                assert torch.equal(dataset.image(i), pixels.permute(2, 0, 1))
                assert dataset.labels[i] == int(tar.extractfile(f"{name}.cls").read())
                assert dataset.bias[i] == json.load(tar.extractfile(f"{name}.json"))["bias"]
                i += 1
    assert i == len(dataset) == dataset.decoded == 270


def _position(tar):
    names = tar.getnames()
    return lambda name: names.index(f"{name}.png")


def test_modes_become_rgb_and_exif_is_ignored(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    rgba = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    cmyk = io.BytesIO()
    Image.new("CMYK", (7, 5), (0, 255, 0, 0)).save(cmyk, "JPEG")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (7, 5)).save(turned, "JPEG", exif=exif)
    dataset = _toy(
        tmp_path, _encoded(grey, "PNG"), _encoded(rgba, "PNG"), cmyk.getvalue(), turned.getvalue()
    )
    for i in range(4):
        assert dataset.image(i).shape == (3, 5, 7)
        assert dataset.image(i).dtype == torch.uint8
    assert torch.equal(dataset.image(0), torch.from_numpy(grey).expand(3, 5, 7))
    assert dataset.bias.tolist() == [-1] * 4


def test_undecodable_image_names_shard_and_sample(tmp_path):
    png = _encoded(np.zeros((9, 9, 3), dtype=np.uint8), "PNG")
    dataset = _toy(tmp_path, png, png[:-30], b"\xff\xd8\xff" + b"x" * 40)
    dataset.image(0)
    for i in (1, 2):
        with pytest.raises(DataError, match=rf"train-00000{i // 2}.tar: sample k{i}: ") as caught:
            dataset.image(i)
        assert "\n" not in str(caught.value)
    assert dataset.decoded == 1


def test_only_jpeg_and_png_are_decoded(tmp_path):
    pixels = np.zeros((9, 9, 3), dtype=np.uint8)
    bitmap = _encoded(pixels, "BMP")
    dataset = _toy(tmp_path, _encoded(pixels, "PNG") + bytes(1000))
    row = np.load(dataset.folder / "index.npy", allow_pickle=False)
    bitmap += bytes(int(row["length"][0]) - len(bitmap))
    with (dataset.folder / "train-000000.tar").open("r+b") as shard:
        shard.seek(int(row["offset"][0]))
        shard.write(bitmap)
    row["hash"][0] = np.void(hashlib.sha256(bitmap).digest()[:16])
    np.save(dataset.folder / "index.npy", row, allow_pickle=False)
    with pytest.raises(DataError, match="cannot be decoded"):
        ShardDataset(dataset.folder).image(0)


def test_decompression_bomb_is_refused(tmp_path):
    # A few kilobytes that announce 30,000 x 30,000 pixels.
    small = bytearray(_encoded(np.zeros((1, 1, 3), dtype=np.uint8), "PNG"))
    small[16:24] = (30000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"decompression bomb|pixels are more than"):
        _toy(tmp_path, bytes(small)).image(0)


def test_missing_shard_is_named(split):
    dataset = ShardDataset(split)
    (split / "train-000003.tar").unlink()
    with pytest.raises(DataError, match=r"train-000003.tar: cannot be read"):
        dataset.check_files()
    i = sum(dataset.manifest.shard_counts[:3])
    with pytest.raises(DataError, match=rf"train-000003.tar: sample {dataset.key(i)}: cannot be"):
        dataset.image(i)


def test_truncated_shard_is_named(split):
    dataset = ShardDataset(split)
    path = split / "train-000006.tar"
    os.truncate(path, 5000)
    with pytest.raises(DataError, match=r"train-000006.tar: has 5000 bytes, but its manifest says"):
        dataset.check_files()
    with pytest.raises(DataError, match=r"train-000006.tar: sample .*: the shard is truncated"):
        dataset.image(len(dataset) - 1)


def test_a_fifo_in_place_of_a_shard_is_refused_without_waiting(split):
    dataset = ShardDataset(split)
    path = split / "train-000006.tar"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"train-000006.tar: cannot be read .*no regular file"):
        dataset.check_files()
    with pytest.raises(DataError, match=r"train-000006.tar: sample .*: cannot be read .*no regul"):
        dataset.image(len(dataset) - 1)


def test_one_flipped_bit_is_noticed(split):
    dataset = ShardDataset(split)
    path = split / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    dataset.check_files()  # the size still fits
    with pytest.raises(DataError, match=rf"sample {dataset.key(0)}: altered"):
        dataset.read(0)


def test_foreign_index_is_noticed(split):
    index = np.load(split / "index.npy", allow_pickle=False)
    index["bias"][0] = (index["bias"][0] + 1) % 10
    np.save(split / "index.npy", index, allow_pickle=False)
    with pytest.raises(DataError, match=r"index.npy: is not the index"):
        ShardDataset(split).check_files()


def test_label_outside_the_classes(split):
    index = np.load(split / "index.npy", allow_pickle=False)
    index["label"][5] = 10
    np.save(split / "index.npy", index, allow_pickle=False)
    with pytest.raises(DataError, match="label 10, outside the 10 classes") as caught:
        ShardDataset(split)
    assert "\n" not in str(caught.value)


def test_open_files_are_bounded(tmp_path):
    png = _encoded(np.zeros((2, 2, 3), dtype=np.uint8), "PNG")
    dataset = _toy(tmp_path, *[png] * 200)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(0, 200, 2):
        dataset.read(i)
    assert len(os.listdir("/proc/self/fd")) - before == 64
    assert dataset.read(0) == png
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before - 1  # its mapped index held one


def test_pickles_as_a_path(shards):
    dataset = ShardDataset(shards / "rho0")
    dataset.read(0)
    blob = pickle.dumps(dataset)
    assert len(blob) < 1000
    assert pickle.loads(blob).read(7) == dataset.read(7)


def test_open_split_checks_what_is_there(shards):
    classes = [str(d) for d in range(10)]
    assert len(open_split(shards, "train", dataset="biased_mnist", classes=classes)) == 270
    with pytest.raises(ConfigError, match="holds the data set 'biased_mnist', not 'imagenet9'"):
        open_split(shards, "train", dataset="imagenet9")
    with pytest.raises(ConfigError, match="classes"):
        open_split(shards, "train", dataset="biased_mnist", classes=classes[::-1])
    with pytest.raises(ConfigError, match="oops: there are no shards here") as caught:
        open_split(shards, "oops", dataset="biased_mnist")
    assert str(shards / "oops") in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["/val", "val", "../val", "a/val", "/a/b/val/", "s3://bucket/val", "s3://bucket/a/val"],
)
def test_a_split_and_its_root_are_found_from_its_place(place):
    root, split = root_and_split(place)
    assert split == "val"
    assert f"{root}/{split}" == place if "://" in place else Path(root, split) == Path(place)


def test_a_split_below_the_root_folder_is_not_looked_for_in_the_working_folder(
    shards, tmp_path, monkeypatch
):
    name = tmp_path.name  # no folder below / has it
    shutil.copytree(shards / "train", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^/{name}: there are no shards here"):
        open_split(*root_and_split(f"/{name}"))
