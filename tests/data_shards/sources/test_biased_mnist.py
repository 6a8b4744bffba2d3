import io
import json
import math
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.errors import UsageError
from data_shards.format.manifest import load_split
from data_shards.sources.biased_mnist import (
    CLASSES,
    COLOURS,
    SPLITS,
    Options,
    assign_colours,
    convert,
    plan_parts,
    render,
    split_stratified,
)
from tests.data_shards.tiny import tree, write_idx

_OPTIONS = Options(rho=0.9, selection_fraction=0.2, samples_per_shard=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    write_idx(folder)
    return folder


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    convert(folder, _OPTIONS, source=source)
    return folder


@given(
    counts=st.lists(st.integers(0, 150), min_size=10, max_size=10),
    rho=st.one_of(st.sampled_from([0.0, 0.1, 0.99, 0.999, 1.0]), st.floats(0, 1)),
    confusing=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_colour_counts_are_the_published_ones(counts, rho, confusing, seed):
    labels = np.repeat(np.arange(10), counts)
    labels = np.random.default_rng(seed).permutation(labels)
    colours = assign_colours(labels, rho, confusing, "key", seed)
    table = np.zeros((10, 10), dtype=int)
    np.add.at(table, (labels, colours), 1)
    for label, n in enumerate(counts):
        kept = int(n * rho)
        rest = n - kept
        assert table[label, label] == kept
        allowed = [(label + k) % 10 for k in range(1, confusing + 1)]
        forbidden = set(range(10)) - set(allowed) - {label}
        assert table[label, sorted(forbidden)].sum() == 0
        # Equal chunks of the rest, the last one shorter, some colours perhaps unused.
        chunk = math.ceil(rest / confusing)
        expected = [min(chunk, max(0, rest - k * chunk)) for k in range(confusing)]
        assert sorted(table[label, allowed], reverse=True) == expected


@given(
    counts=st.lists(st.integers(0, 60), min_size=10, max_size=10),
    fraction=st.floats(0, 1),
    seed=st.integers(),
)
@settings(deadline=None)
def test_split_is_stratified_and_disjoint(counts, fraction, seed):
    labels = np.repeat(np.arange(10), counts)
    first, second = split_stratified(labels, fraction, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    taken = np.bincount(labels[second], minlength=10)
    assert taken.tolist() == [round(n * fraction) for n in counts]


def test_seed_and_split_decide_colours():
    labels = np.repeat(np.arange(10), 50)
    one = assign_colours(labels, 0.5, 9, 0, "train")
    assert np.array_equal(one, assign_colours(labels, 0.5, 9, 0, "train"))
    assert not np.array_equal(one, assign_colours(labels, 0.5, 9, 1, "train"))
    assert not np.array_equal(one, assign_colours(labels, 0.5, 9, 0, "selection"))


def test_rho_999_leaves_the_published_63_conflicts():
    # Class sizes of MNIST's 60,000 training digits.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    labels = np.repeat(np.arange(10), counts)
    colours = assign_colours(labels, 0.999, 9, 0)
    assert (labels != colours).sum() == 63


def test_render_is_white_on_colour():
    digit = np.zeros((28, 28), dtype=np.uint8)
    digit[3, 5], digit[4, 6] = 1, 255
    pixels = np.asarray(render(digit, 3))
    assert pixels.shape == (28, 28, 3)
    assert (pixels[digit > 0] == 255).all()
    assert (pixels[digit == 0] == COLOURS[3]).all()


@pytest.mark.parametrize("size", [14, 7, 4])
def test_small_images_average_areas(size):
    digit = np.random.default_rng(size).integers(0, 2, (28, 28), dtype=np.uint8)
    block = 28 // size
    full = np.asarray(render(digit, 7), dtype=float)
    expected = full.reshape(size, block, size, block, 3).mean(axis=(1, 3))
    difference = np.abs(np.asarray(render(digit, 7, size)) - expected).max()
    print(f"largest difference from the block mean: {difference:.3f} of 255")
    assert difference <= 1  # one rounding in each of the two passes


def test_embedded_digits_are_split_without_overlap():
    parts = plan_parts(Options(rho=0.95, seed=3))
    assert list(parts) == list(SPLITS)
    ids = {split: set(part.ids.tolist()) for split, part in parts.items()}
    assert [len(ids[split]) for split in SPLITS] == [3600, 400, 1000, 1000, 1000]
    assert ids["biased"] == ids["unbiased"] == ids["rho0"]
    assert not ids["train"] & ids["selection"]
    assert not (ids["train"] | ids["selection"]) & ids["biased"]
    for split, part in parts.items():
        assert np.bincount(part.labels).tolist() == [len(part.ids) // 10] * 10
        right = (part.labels == part.colours).mean()
        assert right == {"biased": 1, "unbiased": 0.1, "rho0": 0}.get(split, 0.95)
    train, test = parts["train"], parts["biased"]
    contents = {
        split: {part.digits.images[i].tobytes() for i in part.ids}
        for split, part in (("train", train), ("test", test))
    }
    assert not contents["train"] & contents["test"]
    assert set(plan_parts(Options(seed=4))["biased"].ids.tolist()) != ids["biased"]


def test_official_split_is_kept(source):
    parts = plan_parts(Options(selection_fraction=0), source=source)
    assert "selection" not in parts
    assert sorted(parts["train"].ids) == list(range(300))
    assert sorted(parts["unbiased"].ids) == list(range(200))
    assert parts["train"].digits.name == "train-images-idx3-ubyte"
    assert parts["unbiased"].digits.name == "t10k-images-idx3-ubyte"


def test_two_conversions_are_byte_identical(shards, source, tmp_path):
    convert(tmp_path, _OPTIONS, source=source)
    assert tree(tmp_path) == tree(shards)
    assert len(tree(shards)) == sum(len(load_split(shards / s)[0].shards) + 2 for s in SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_stock_webdataset_reads_what_the_index_says(shards, split):
    manifest, index = load_split(shards / split)
    paths = [str(shards / split / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert len(samples) == manifest.samples == len(index)
    for sample, row in zip(samples, index, strict=True):
        assert sample["__key__"].encode() == row["key"]
        assert int(sample["cls"]) == row["label"]
        facts = json.loads(sample["json"])
        assert facts["bias"] == row["bias"]
        assert facts["size"] == [28, 28]
        pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
        assert tuple(pixels[(pixels != 255).any(axis=2)][0]) == COLOURS[row["bias"]]


def test_index_offsets_are_those_of_the_tar(shards):
    manifest, index = load_split(shards / "train")
    assert len(manifest.shards) == 4
    row = 0
    for number, shard in enumerate(manifest.shards):
        content = (shards / "train" / shard.name).read_bytes()
        with tarfile.open(shards / "train" / shard.name) as tar:
            for member in tar:
                assert member.mtime == 0
                if member.name.endswith(".png"):
                    assert index["shard"][row] == number
                    assert index["offset"][row] == member.offset_data
                    assert index["length"][row] == member.size
                    begin = member.offset_data
                    assert tar.extractfile(member).read() == content[begin : begin + member.size]
                    row += 1
    assert row == manifest.samples


def test_pixels_are_the_source_digits(shards, source):
    arrays = write_idx(source)
    _, index = load_split(shards / "rho0")
    with tarfile.open(shards / "rho0" / "rho0-000000.tar") as tar:
        for row in index[index["shard"] == 0]:
            key = row["key"].decode()
            number = int(key.split("-")[1])
            facts = json.load(tar.extractfile(f"{key}.json"))
            assert facts["source"] == f"t10k-images-idx3-ubyte:{number}"
            digit = arrays["t10k-images-idx3-ubyte"][number]
            assert arrays["t10k-labels-idx1-ubyte"][number] == row["label"]
            pixels = np.asarray(Image.open(tar.extractfile(f"{key}.png")))
            assert np.array_equal((pixels == 255).all(axis=2), digit > 0)


def test_samples_are_shuffled_in_the_shards(shards):
    _, index = load_split(shards / "train")
    assert len(set(index["label"][:30].tolist())) > 5
    assert not np.array_equal(np.sort(index["key"]), index["key"])


def test_manifest_says_what_was_made(shards):
    manifest, _ = load_split(shards / "selection")
    assert manifest.dataset == "biased_mnist"
    assert manifest.classes == CLASSES
    assert manifest.class_counts == (6,) * 10
    assert manifest.normalize.mean == manifest.normalize.std == (0.5, 0.5, 0.5)
    assert manifest.options["rho"] == 0.9
    assert manifest.options["samples_per_shard"] == 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rho", 1.01), ("rho", -0.1), ("rho", math.nan), ("confusing_colours", 0),
        ("confusing_colours", 10), ("image_size", 3), ("image_size", 29),
        ("selection_fraction", -0.1), ("samples_per_shard", 0),
    ],
)  # fmt: skip
def test_option_out_of_range_is_named(field, value):
    with pytest.raises(UsageError, match=f"{field} is {value}"):
        Options(**{field: value})


def test_empty_split_is_refused(source):
    with pytest.raises(UsageError, match="train would be empty"):
        plan_parts(Options(selection_fraction=1), source=source)
    with pytest.raises(UsageError, match="selection would be empty"):
        plan_parts(Options(selection_fraction=0), source=source, splits=["selection"])


def test_another_data_set_is_never_overwritten(shards, source):
    before = tree(shards)
    convert(shards, _OPTIONS, source=source)  # the same: nothing to do
    with pytest.raises(UsageError, match="different data set"):
        convert(shards, Options(rho=0.5, selection_fraction=0.2), source=source)
    assert tree(shards) == before
