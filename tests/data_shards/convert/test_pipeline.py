import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.audit.overlaps import write_overlaps
from data_shards.audit.verify import verify_split
from data_shards.convert.journal import Work
from data_shards.convert.plan import Conversion, Options, stored_bytes
from data_shards.convert.publish import Limit, merge
from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import load_manifest, load_split
from data_shards.sources.listing import IMAGENET_NORMALIZE, Item, Listing
from tests.data_shards.converted import converted, listing
from tests.data_shards.tiny import tree
from tests.data_shards.trees import jpeg


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return listing(tmp_path_factory.mktemp("source"), damaged=(3, 17))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    assert converted(source, output) is not None
    return output


def _findings(folder):
    lines = (folder / "findings.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _items(lengths):
    return tuple(
        Item(f"s{i}", f"k{i}", 0, "", "/nowhere", 0, length) for i, length in enumerate(lengths)
    )


@given(
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    samples=st.integers(1, 20),
    most=st.none() | st.integers(1, 20_000),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_the_plan_takes_every_image_once_and_keeps_to_its_limits(lengths, samples, most, seed):
    given = Listing("toy", "train", ("a",), _items(lengths))
    options = Options(seed=seed, samples_per_shard=samples, bytes_per_shard=most)
    conversion = Conversion(given, options)
    shards = [conversion.items(number) for number in range(conversion.shards)]
    assert sorted(i.key for shard in shards for i in shard) == sorted(i.key for i in given.items)
    for number, shard in enumerate(shards):
        assert 1 <= len(shard) <= samples
        size = sum(stored_bytes(item.length) for item in shard)
        assert most is None or size <= most or len(shard) == 1
        if number + 1 < len(shards):  # it could not take one more
            following = stored_bytes(shards[number + 1][0].length)
            assert len(shard) == samples or (most is not None and size + following > most)
    assert Conversion(given, options).plan.recipe == conversion.plan.recipe
    parts = [number for i in (1, 2, 3) for number in conversion.part(i, 3)]
    assert sorted(parts) == list(range(conversion.shards))


def test_whatever_decides_the_shards_is_in_the_recipe(source):
    recipe = Conversion(source, Options()).plan.recipe
    changed = [
        *(
            Conversion(source, Options(**{name: value})).plan.recipe
            for name, value in [
                ("seed", 1), ("samples_per_shard", 9), ("bytes_per_shard", 9_000), ("resize", 9),
                ("exclude_suspect", True),
            ]
        ),
        *(
            Conversion(dataclasses.replace(source, items=items), Options()).plan.recipe
            for items in [
                source.items[:-1],
                (*source.items[:-1], dataclasses.replace(source.items[-1], label=1)),
                (*source.items[:-1], dataclasses.replace(source.items[-1], length=1)),
                (*source.items[:-1], dataclasses.replace(source.items[-1], flags=("stylised",))),
            ]
        ),
    ]  # fmt: skip
    assert len({recipe, *changed}) == 1 + len(changed)
    moved = [dataclasses.replace(item, path="/else", offset=512) for item in source.items]
    elsewhere = dataclasses.replace(source, items=tuple(moved))
    assert Conversion(elsewhere, Options()).plan.recipe == recipe


def test_shards_hold_the_sources_bytes_and_stock_webdataset_reads_them(source, whole):
    manifest, index = load_split(whole / "train")
    assert manifest.samples == 38
    assert {e.source: e.reasons for e in manifest.excluded} == {
        "train/3.jpg": ("truncated",),
        "train/17.jpg": ("truncated",),
    }
    paths = [str(whole / "train" / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert [sample["__key__"].encode() for sample in samples] == index["key"].tolist()
    items = {item.key: item for item in source.items}
    order = []
    for sample, row in zip(samples, index, strict=True):
        item = items[sample["__key__"]]
        order.append(int(item.key[1:]))
        with open(item.path, "rb") as file:
            assert file.read() == sample["jpg"]
        assert int(sample["cls"]) == row["label"] == item.label
        facts = json.loads(sample["json"])
        assert facts["source"] == item.source
        assert facts["wnid"] == item.wnid
        assert facts["size"] == [24, 18]
        assert facts["sha256"] == hashlib.sha256(sample["jpg"]).hexdigest()
        assert row["hash"].tobytes().hex() == facts["sha256"][:32]
    assert order != sorted(order)
    assert list(verify_split(whole / "train")) == []
    assert not list(whole.glob(".*"))


def test_shards_are_byte_for_byte_those_of_webdatasets_writer(whole, tmp_path):
    path = whole / "train" / "train-000000.tar"
    stock = tmp_path / "stock.tar"
    with stock.open("wb") as file:
        writer = webdataset.TarWriter(file, encoder=False, mtime=0)
        for sample in webdataset.WebDataset([str(path)], shardshuffle=False, empty_check=False):
            writer.write({k: v for k, v in sample.items() if k == "__key__" or k[0] != "_"})
        writer.close()
    assert stock.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("workers", [2, 4])
def test_the_result_does_not_depend_on_workers(source, whole, tmp_path, workers):
    converted(source, tmp_path, workers=workers)
    assert tree(tmp_path) == tree(whole)


def test_parts_merged_are_the_conversion_in_one_go(source, whole, tmp_path):
    for number in (3, 1):
        assert converted(source, tmp_path, part=(number, 3)) is None
    with pytest.raises(DataShardsError, match="2 of 6 shards are not written yet: 1, 4;"):
        merge(tmp_path, "train", limit=Limit(), workers=1)
    assert converted(source, tmp_path, part=(2, 3)) is None
    assert not (tmp_path / "train").exists()
    with pytest.raises(DataShardsError, match="2 of 40 images are left out"):
        merge(tmp_path, "train", limit=Limit(1, "--max-corrupt 1"), workers=1)
    merged = merge(tmp_path, "train", limit=Limit(2, "--max-corrupt 2"), workers=1)
    assert tree(tmp_path) == tree(whole)
    assert merge(tmp_path, "train", limit=Limit(), workers=1) == merged
    assert converted(source, tmp_path, part=(2, 3)) == merged
    with pytest.raises(UsageError, match="no unfinished conversion"):
        merge(tmp_path, "val", limit=Limit(), workers=1)


def test_a_part_of_something_else_is_refused(source, tmp_path):
    converted(source, tmp_path, part=(1, 3))
    with pytest.raises(UsageError, match=r"unfinished conversion of something else \(seed 0\)"):
        converted(source, tmp_path, part=(2, 3), seed=1)
    other = dataclasses.replace(source, items=(*source.items[1:], source.items[0]))
    with pytest.raises(UsageError, match="the images"):
        converted(other, tmp_path, part=(2, 3))


def test_a_different_split_is_never_overwritten(source, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UsageError, match="different data set"):
        converted(source, tmp_path, seed=1)
    assert tree(tmp_path) == tree(whole)


def test_lost_shards_and_damaged_records_are_made_again_or_named(source, whole, tmp_path):
    converted(source, tmp_path, part=(1, 2))
    work = Work(tmp_path, "train")
    (work.shards / "train-000002.tar").unlink()
    (work.folder / "temporary" / "left-by-a-kill").write_bytes(b"x")
    record = work.folder / "journal" / "000004.json"
    record.write_bytes(record.read_bytes().replace(b"train/", b"trash/"))
    seen = {}
    converted(source, tmp_path, on_shard=lambda images, written: seen.update({written: images}))
    assert set(seen) == {True, False}
    assert tree(tmp_path) == tree(whole)


def test_limits_stop_early_and_the_work_is_kept(source, whole, tmp_path):
    with pytest.raises(DataShardsError, match=r"truncated.*more than --on-corrupt fail allows"):
        converted(source, tmp_path, limit=Limit(0, "--on-corrupt fail"))
    assert not (tmp_path / "train").exists()
    with pytest.raises(DataShardsError, match="2 of 40 images"):
        converted(source, tmp_path, limit=Limit(0.03, "--max-corrupt 0.03"))
    assert not (tmp_path / "train").exists()
    converted(source, tmp_path, limit=Limit(0.05, "--max-corrupt 0.05"))
    assert tree(tmp_path) == tree(whole)


def test_an_image_that_was_repaired_is_taken(tmp_path):
    """Of the same size, for a source of another size is another source."""
    given = listing(tmp_path / "in", 15, damaged=(3, 9))
    paths = [tmp_path / "in" / f"{number}.jpg" for number in (3, 9)]
    for number, path in zip((3, 9), paths, strict=True):
        path.write_bytes(jpeg(number)[:-40] + bytes(40))
    lengths = {str(path): path.stat().st_size for path in paths}
    items = [dataclasses.replace(i, length=lengths.get(i.path, i.length)) for i in given.items]
    given = dataclasses.replace(given, items=tuple(items))
    out = tmp_path / "out"
    for number in (1, 2):
        converted(given, out, part=(number, 2), resize=16, samples_per_shard=2)
    with pytest.raises(DataShardsError, match="2 of 15 images are left out"):
        converted(given, out, limit=Limit(1, "-"), resize=16, samples_per_shard=2)
    work = Work(out, "train")
    stamps = {path.name: path.stat().st_mtime_ns for path in work.shards.iterdir()}
    paths[0].write_bytes(jpeg(3))
    found = converted(given, out, limit=Limit(1, "-"), resize=16, samples_per_shard=2)
    assert [e.source for e in found.excluded] == ["train/9.jpg"]
    # All but the shard of that image stay as they were written.
    written = out / "train"
    changed = {n for n, stamp in stamps.items() if (written / n).stat().st_mtime_ns != stamp}
    assert len(stamps) == 8
    assert len(changed) == 1
    converted(given, tmp_path / "anew", resize=16, samples_per_shard=2)
    assert tree(out) == tree(tmp_path / "anew")


def test_a_part_repeated_takes_what_was_repaired(tmp_path):
    given = listing(tmp_path / "in", 9)
    path = tmp_path / "in" / "4.jpg"
    path.write_bytes(jpeg(4)[:-40] + bytes(40))
    for content in (path.read_bytes(), jpeg(4)):
        path.write_bytes(content)
        for number in (1, 2):
            converted(given, tmp_path / "out", part=(number, 2))
    merged = merge(tmp_path / "out", "train", limit=Limit(0, "-"), workers=1)
    assert merged.samples == 9


def test_nothing_is_published_without_an_image(tmp_path):
    given = listing(tmp_path / "in", 2, damaged=(0, 1))
    with pytest.raises(DataShardsError, match="all 2 images are damaged"):
        converted(given, tmp_path / "out")
    assert not (tmp_path / "out" / "train").exists()


def test_left_out_images_are_copied_to_the_quarantine(source, tmp_path):
    converted(source, tmp_path / "out", quarantine=tmp_path / "bad")
    copies = tree(tmp_path / "bad")
    assert set(copies) == {"train/k3.jpg", "train/k17.jpg"}
    with open(source.items[3].path, "rb") as file:
        assert copies["train/k3.jpg"] == file.read()


def test_suspects_are_kept_and_marked_unless_excluded(tmp_path):
    given = listing(tmp_path / "in", 4)
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 9, 9)).save(stream, "PNG")
    path = tmp_path / "in" / "0.jpg"
    path.write_bytes(stream.getvalue())
    items = (dataclasses.replace(given.items[0], length=len(stream.getvalue())), *given.items[1:])
    given = dataclasses.replace(given, items=items)
    kept = converted(given, tmp_path / "kept")
    assert kept.samples == 4
    assert _findings(tmp_path / "kept" / "train") == [
        {"path": "train/0.jpg", "verdict": "suspect", "reasons": ["constant"]}
    ]
    paths = [str(tmp_path / "kept" / "train" / "train-000000.tar")]
    samples = {s["__key__"]: s for s in webdataset.WebDataset(paths, shardshuffle=False)}
    assert samples["k0"]["png"] == stream.getvalue()
    facts = json.loads(samples["k0"]["json"])
    assert (facts["suspect"], facts["flags"]) == (["constant"], ["wrong-extension"])
    without = converted(given, tmp_path / "without", exclude_suspect=True)
    assert [e.source for e in without.excluded] == ["train/0.jpg"]
    assert without.samples == 3


def _copy(item, folder, key, content):
    path = folder / key
    path.write_bytes(content)
    return dataclasses.replace(
        item, key=key, source=f"train/{key}", path=str(path), length=len(content)
    )


def test_duplicates_are_kept_and_listed_within_and_across_splits(tmp_path):
    given = listing(tmp_path / "in", 9)
    folder = tmp_path / "in"
    same = jpeg(2)
    commented = jpeg(5)[:2] + b"\xff\xfe\x00\x05abc" + jpeg(5)[2:]
    items = (
        *given.items,
        _copy(given.items[0], folder, "again", same),
        _copy(given.items[0], folder, "commented", commented),
    )
    train = converted(dataclasses.replace(given, items=items), tmp_path / "out")
    assert train.samples == 11
    found = {
        (frozenset((f["path"], f["of"])), *f["reasons"]) for f in _findings(tmp_path / "out/train")
    }
    assert found == {
        (frozenset(("train/2.jpg", "train/again")), "same-bytes"),
        (frozenset(("train/5.jpg", "train/commented")), "same-pixels"),
    }
    assert write_overlaps(tmp_path / "out", 1) == []
    assert not (tmp_path / "out" / "duplicates.jsonl").exists()
    # A second split with two of the same images, one of them with other bytes.
    val = listing(tmp_path / "val", 3, split="val")
    for item, content in zip(val.items, (same, commented, jpeg(99)), strict=True):
        with open(item.path, "wb") as file:
            file.write(content)
    val_items = tuple(dataclasses.replace(i, length=os.stat(i.path).st_size) for i in val.items)
    before = tree(tmp_path / "out")
    converted(dataclasses.replace(val, items=val_items), tmp_path / "out")
    write_overlaps(tmp_path / "out", 1)
    lines = (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()
    found = {(f["path"], f["verdict"], *f["reasons"]) for f in map(json.loads, lines)}
    assert found == {("val/k0", "duplicate", "same-bytes"), ("val/k1", "duplicate", "same-bytes")}
    after = tree(tmp_path / "out")
    assert {name: after[name] for name in before} == before


def test_resizing_makes_jpegs_of_what_is_larger(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    contents = {}
    for key, mode, size in [
        ("large", "RGB", (80, 60)), ("tall", "L", (50, 90)), ("alpha", "RGBA", (70, 70)),
        ("cmyk", "CMYK", (64, 64)), ("deep", "I;16", (50, 50)), ("small", "RGB", (30, 90)),
    ]:  # fmt: skip
        low = Image.fromarray(rng.integers(0, 256, (3, 3, 4), dtype=np.uint8)).convert("RGB")
        image = low.resize(size, Image.Resampling.BICUBIC)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        stream = io.BytesIO()
        image.save(stream, "JPEG" if mode in ("RGB", "CMYK") else "PNG")
        contents[key] = stream.getvalue()
    items = tuple(
        _copy(Item("", key, 0, "", "", 0, 0), folder, key, content)
        for key, content in contents.items()
    )
    given = Listing("toy", "train", ("a",), items, IMAGENET_NORMALIZE)
    manifest = converted(given, tmp_path / "out", resize=32, quality=80)
    assert manifest.samples == len(items)
    assert manifest.options["resize"] == 32
    assert "Pillow" in manifest.options["encoder"]
    path = str(tmp_path / "out" / "train" / "train-000000.tar")
    samples = {s["__key__"]: s for s in webdataset.WebDataset([path], shardshuffle=False)}
    assert samples["small"]["jpg"] == contents["small"]
    assert "original" not in json.loads(samples["small"]["json"])
    for key, size in [
        ("large", (43, 32)), ("tall", (32, 58)), ("alpha", (32, 32)), ("cmyk", (32, 32)),
        ("deep", (32, 32)),
    ]:  # fmt: skip
        image = Image.open(io.BytesIO(samples[key]["jpg"]))
        facts = json.loads(samples[key]["json"])
        original = Image.open(io.BytesIO(contents[key]))
        assert (image.mode, image.size, tuple(facts["size"])) == ("RGB", size, size)
        assert facts["original"]["sha256"] == hashlib.sha256(contents[key]).hexdigest()
        assert facts["original"]["size"] == list(original.size)
        if key == "deep":
            original = Image.fromarray((np.asarray(original) // 257).astype(np.uint8))
        expected = np.asarray(original.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        difference = np.abs(np.asarray(image).astype(int) - expected).mean()
        print(f"{key}: mean difference {difference:.2f} of 255")
        assert difference < 6
    assert list(verify_split(tmp_path / "out" / "train")) == []


def test_an_image_too_large_for_a_worker_is_left_out_and_named(tmp_path):
    given = listing(tmp_path / "in", 5)
    stream = io.BytesIO()
    # Whole, and small enough to be examined; converting it for --resize takes too much memory.
    Image.new("RGBA", (8000, 8000), (1, 2, 3, 4)).save(stream, "PNG", compress_level=1)
    items = (*given.items, _copy(given.items[0], tmp_path / "in", "huge", stream.getvalue()))
    manifest = converted(dataclasses.replace(given, items=items), tmp_path / "out", resize=16)
    assert [(e.source, e.reasons) for e in manifest.excluded] == [("train/huge", ("too-large",))]
    assert manifest.samples == 5


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 KB, if this machine lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_half(source, whole, small_disk, tmp_path):
    with pytest.raises(OSError, match="No space left"):
        converted(source, small_disk)
    work = Work(small_disk, "train")
    assert not (small_disk / "train").exists()
    assert not any((work.folder / "temporary").iterdir())
    shards = sorted(work.shards.iterdir())
    assert shards
    for path in shards:
        assert path.read_bytes() == (whole / "train" / path.name).read_bytes()
    for path in (work.folder / "journal").iterdir():
        assert json.loads(path.read_bytes().partition(b"\n")[2])["shard"]
    # With room, the same call goes on with them.
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    stamps = {path.name: path.stat().st_mtime_ns for path in shards}
    converted(source, small_disk)
    assert tree(small_disk) == tree(whole)
    kept = {
        name for name, s in stamps.items() if (small_disk / "train" / name).stat().st_mtime_ns == s
    }
    assert kept


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_leaves_a_state_that_goes_on(tmp_path, asked):
    folder = tmp_path / "in" / "n01440764"
    folder.mkdir(parents=True)
    for number in range(600):  # seconds of work after the first shard
        content = jpeg(number % 60, (800, 600))
        (folder / f"n01440764_{number}.JPEG").write_bytes(content)
    command = [sys.executable, "-m", "data_shards", "convert", "imagenet1k", "--workers", "1"]
    command += ["--split", "train", "--selection-fraction", "0", "--samples-per-shard", "5"]
    command += ["--source", str(tmp_path / "in")]
    begun = subprocess.Popen([*command, "--output", str(tmp_path / "a")], stderr=subprocess.PIPE)
    journal = tmp_path / "a" / ".train.convert" / "journal"
    while not (journal.is_dir() and any(journal.iterdir())):
        assert begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(asked)
    _, shown = begun.communicate(timeout=1000)
    assert begun.returncode == 130
    assert b"Traceback" not in shown
    assert not any((tmp_path / "a" / ".train.convert" / "temporary").iterdir())
    for name in ("a", "b"):
        subprocess.run([*command, "--output", str(tmp_path / name)], check=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_an_empty_shard_is_a_shard(tmp_path):
    given = listing(tmp_path / "in", 4)
    order = Conversion(given, Options(samples_per_shard=2)).order
    for position in order[:2]:
        path = given.items[position].path
        with open(path, "r+b") as file:
            file.truncate(given.items[position].length - 30)
    manifest = converted(given, tmp_path / "out", samples_per_shard=2)
    assert manifest.shard_counts == [0, 2]
    assert {e.reasons for e in manifest.excluded} == {("unreadable",)}
    split = tmp_path / "out" / "train"
    paths = [str(split / shard.name) for shard in manifest.shards]
    assert len(list(webdataset.WebDataset(paths, shardshuffle=False))) == 2
    with tarfile.open(paths[0]) as tar:
        assert tar.getnames() == []
    assert load_manifest(split) == manifest
    assert list(verify_split(split)) == []
