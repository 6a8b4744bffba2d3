"""Folders whose names say no split are never taken together for one split."""

import pytest

from data_shards.__main__ import cli
from data_shards.errors import UsageError
from data_shards.sources.datasets import custom
from data_shards.sources.imagenet import listings
from tests.data_shards import trees


@pytest.fixture
def pets(tmp_path):
    (tmp_path / "pets.csv").write_text("wnid,class\ntabby,cat\npug,dog\n")
    return custom("pets", tmp_path / "pets.csv")


def _photos(root, *folders):
    """Class folders below each of ``folders``; every image has other pixels."""
    for place, folder in enumerate(folders):
        images = {
            wnid: {f"{n}.jpg": trees.jpeg(100 * place + 10 * c + n) for n in range(3)}
            for c, wnid in enumerate(("tabby", "pug"))
        }
        trees.write_folder(root / folder, images)
    return root


def _splits(pets, source, split=None):
    found = listings(pets, [source], split, selection_fraction=0)
    return {listing.split: {item.source for item in listing.items} for listing in found}


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_siblings_with_class_folders_are_refused_and_named(tmp_path, pets, split):
    coco = _photos(tmp_path / "coco", "train2017", "val2017")
    with pytest.raises(UsageError) as caught:
        listings(pets, [coco], split)
    said = str(caught.value)
    assert f"class folders in {coco}/train2017, {coco}/val2017; give those that are" in said
    assert ("as --source with --split" in said) == (split is None)
    assert "\n" not in said


def test_the_cures_work(tmp_path, pets):
    coco = _photos(tmp_path / "coco", "train2017", "val2017")
    found = _splits(pets, coco / "val2017", "val")
    assert {source.count("/") for source in found["val"]} == {1}
    assert len(found["val"]) == 6
    both = [coco / "train2017", coco / "val2017"]
    (train,) = listings(pets, both, "train", selection_fraction=0)
    assert len(train.items) == 12
    for name in ("train", "val"):
        (coco / f"{name}2017").rename(coco / name)
    assert {split: len(paths) for split, paths in _splits(pets, coco).items()} == {
        "train": 6,
        "val": 6,
    }


def test_the_command_writes_nothing(tmp_path, pets, capsys):
    coco = _photos(tmp_path / "coco", "train2017", "val2017")
    command = ["convert", "folder", "--name", "pets", "--classes", str(tmp_path / "pets.csv")]
    command += ["--source", str(coco), "--output", str(tmp_path / "out"), "--split", "train"]
    assert cli(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_beside_named_ones_is_named_in_the_cure(tmp_path, pets):
    photos = _photos(tmp_path / "photos", "train", "valid", "test")
    with pytest.raises(UsageError, match=r"photos/valid; give it as --source with --split, or "):
        listings(pets, [photos])
    assert _splits(pets, photos / "valid", "val").keys() == {"val"}
    (photos / "valid").rename(photos / "val")
    assert {split: len(paths) for split, paths in _splits(pets, photos).items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }


def test_class_folders_at_two_depths_are_not_merged(tmp_path, pets):
    photos = _photos(tmp_path / "photos", "", "old")
    for split in (None, "train"):
        with pytest.raises(UsageError, match=r"photos/old; move those that are not meant out of"):
            listings(pets, [photos], split)


def test_archives_are_read_in_the_same_way(tmp_path, pets):
    files = [
        (f"{folder}/{wnid}/{n}.jpg", trees.jpeg(n))
        for folder in ("train2017", "val2017")
        for wnid in ("tabby", "pug")
        for n in range(2)
    ]
    archive = trees.write_tar(tmp_path / "coco.tar", files)
    with pytest.raises(UsageError, match=r"coco\.tar/val2017; unpack the archive and give those"):
        listings(pets, [archive], "train")


def test_a_source_named_after_its_split_may_have_parts(tmp_path, pets):
    photos = _photos(tmp_path / "photos" / "train", "monday", "tuesday").parent
    for source, split in ((photos, None), (photos / "train", None), (photos / "train", "train")):
        assert {name: len(paths) for name, paths in _splits(pets, source, split).items()} == {
            "train": 12
        }
    # The name of the folder above the source says nothing about what lies side by side in it.
    coco = _photos(tmp_path / "test" / "coco", "train2017", "val2017")
    with pytest.raises(UsageError, match=r"coco/val2017; give those that are meant"):
        listings(pets, [coco])


def test_a_table_of_labels_says_the_split_in_place_of_a_name(tmp_path, pets):
    coco = _photos(tmp_path / "coco", "train2017", "val2017")
    table = tmp_path / "val.csv"
    table.write_text("name,wnid\nval2017/pug/0.jpg,pug\n")
    (val,) = listings(pets, [coco], "val", labels=table)
    assert [item.source for item in val.items] == ["val2017/pug/0.jpg"]
    with pytest.raises(UsageError, match=r"does not say which split it is .*; give --split"):
        listings(pets, [coco], labels=table)
