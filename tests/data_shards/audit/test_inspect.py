import io
import json
import os

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_shards.__main__ import cli
from data_shards.audit.inspect import contact_sheet
from data_shards.audit.verify import verify_split
from data_shards.errors import DataShardsError
from data_shards.format.manifest import load_split
from data_shards.format.samples import read_image, walk_facts
from data_shards.images.sheets import Strip, sheet
from tests.data_shards.small_split import encoded, noise, write_split


@pytest.fixture
def split(tmp_path):
    sizes = [(40, 30), (64, 20), (50, 50)]
    samples = [
        (f"a/{n}.jpg", label, noise(n, sizes[n % 3]))
        for n, label in enumerate([0] * 9 + [1] * 3 + [3] * 5)
    ]
    return write_split(
        tmp_path / "data",
        "train",
        ["frog", "bird", "crab", "fish"],
        samples,
        excluded=[("b/1.jpg", "truncated"), ("b/2.jpg", "truncated"), ("b/3.jpg", "empty")],
        flags=("cmyk",),
    )


def test_figures(split, capsys):
    assert cli(["inspect", str(split), "--json", "--excluded"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["class_counts"] == {"frog": 9, "bird": 3, "crab": 0, "fish": 5}
    assert found["per_class"] == {"min": 0, "median": 4, "max": 9}
    assert found["formats"] == {"jpg": 17}
    assert found["width"] == {"min": 40, "median": 50, "max": 64}
    assert found["height"] == {"min": 20, "median": 30, "max": 50}
    assert found["flags"] == {"cmyk": 1}
    assert found["excluded_reasons"] == {"empty": 1, "truncated": 2}
    assert [left["source"] for left in found["excluded_images"]] == [
        "b/1.jpg", "b/2.jpg", "b/3.jpg",
    ]  # fmt: skip
    assert found["shard_samples"] == {"min": 3, "median": 7, "max": 7}
    sizes = sorted(path.stat().st_size for path in split.glob("*.tar"))
    assert found["shard_bytes"] == {"min": sizes[0], "median": sizes[1], "max": sizes[2]}


def test_stock_webdataset_reads_the_same_images_and_facts(split):
    manifest, index = load_split(split)
    paths = [str(split / shard.name) for shard in manifest.shards]
    stock = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    facts = list(walk_facts(split, manifest, index))
    assert len(stock) == len(index) == 17
    for sample, row, ours in zip(stock, index, facts, strict=True):
        assert sample["__key__"] == ours.key == row["key"].decode()
        assert sample[ours.extension] == read_image(split, manifest, row)
        assert int(sample["cls"]) == row["label"]
        told = json.loads(sample["json"])
        assert (told["source"], told["size"]) == (ours.source, list(ours.size))
        assert told["flags"] == list(ours.flags)
    assert list(verify_split(split)) == []


def test_text_names_every_class_and_all_that_was_left_out(split, capsys):
    assert cli(["inspect", str(split), "--excluded"]) == 0
    shown = capsys.readouterr().out
    for words in ("frog", "crab", "b/3.jpg: empty", "left out       3", "cmyk 1", "jpg 17"):
        assert words in shown


def test_biased_mnist_shows_its_colours(few_digits, tmp_path, capsys):
    command = ["convert", "biased-mnist", "--source", str(few_digits), "--rho", "0.5"]
    assert cli([*command, "--output", str(tmp_path / "bm")]) == 0
    capsys.readouterr()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    folder = str(tmp_path / "bm")
    assert cli(["inspect", folder, "--json", "--contact-sheet", str(pictures / "s.png")]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["split"] for one in found] == ["biased", "rho0", "selection", "train", "unbiased"]
    table = np.array(found[3]["bias_counts"])
    assert table.sum() == found[3]["samples"]
    assert (table.sum(1) == list(found[3]["class_counts"].values())).all()
    assert sorted(path.name for path in pictures.iterdir()) == [
        f"s-{one['split']}.png" for one in found
    ]


def test_the_sheet_shows_whole_images_of_every_class_and_is_always_the_same(tmp_path):
    colours = {0: (255, 0, 0), 1: (0, 128, 0), 2: (0, 0, 255)}
    samples = [
        (f"{n}.png", label, Image.new("RGB", (300, 150), colour))
        for n, (label, colour) in enumerate(list(colours.items()) * 12)
    ]
    folder = write_split(tmp_path, "val", ["red", "green", "blue"], samples, kind="PNG")
    manifest, index = load_split(folder)
    content = contact_sheet(folder, manifest, index)
    assert content == contact_sheet(folder, manifest, index)
    with Image.open(io.BytesIO(content)) as page:
        assert page.format == "PNG"
        pixels = np.asarray(page)
    for colour in colours.values():
        # Eight pictures of 112 × 56: whole, with their proportions.
        assert (pixels == colour).all(-1).sum() == 8 * 112 * 56


def test_a_thousand_classes_make_a_page_that_can_be_opened():
    image = encoded(noise(1, (90, 60)))
    with Image.open(
        io.BytesIO(sheet("title", [Strip(f"class {n}", [image] * 2) for n in range(1000)], 8))
    ) as page:
        assert max(page.size) < 8000
        assert 0.5 < page.width / page.height < 2


def test_a_swapped_image_is_not_shown(split):
    manifest, index = load_split(split)
    shard = split / manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    content[int(index["offset"][2]) + 200] ^= 1
    shard.write_bytes(content)
    read_image(split, manifest, index[1])
    with pytest.raises(DataShardsError, match=f"{shard.name}: k2: is not the image"):
        read_image(split, manifest, index[2])


def test_facts_of_a_damaged_shard_are_a_finding(split, capsys):
    manifest, index = load_split(split)
    shard = split / manifest.shards[1].name
    whole = shard.read_bytes()
    for damaged in (b"", whole[:2000], whole.replace(b'"source"', b'"sauce!"', 1)):
        shard.write_bytes(damaged)
        with pytest.raises(DataShardsError, match=shard.name):
            list(walk_facts(split, manifest, index))
        assert cli(["inspect", str(split)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_regular_file_does_not_block(split, capsys):
    manifest, index = load_split(split)
    shard = split / manifest.shards[0].name
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(DataShardsError, match="no regular file"):
        read_image(split, manifest, index[0])
    assert cli(["inspect", str(split)]) == 1
    assert "no regular file" in capsys.readouterr().err


def test_no_split_is_wrong_use(tmp_path, split, capsys):
    assert cli(["inspect", str(tmp_path)]) == 2
    assert cli(["inspect", str(split), "--contact-sheet", str(tmp_path / "no" / "x.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
