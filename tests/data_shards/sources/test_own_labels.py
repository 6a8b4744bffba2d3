"""A table of labels for a folder that mixes the splits, and selection data of one's own."""

import pytest

from data_shards.__main__ import cli
from data_shards.errors import UsageError
from data_shards.format.manifest import load_split
from data_shards.sources.datasets import custom
from data_shards.sources.imagenet import listings
from tests.data_shards import trees


@pytest.fixture
def pets(tmp_path):
    (tmp_path / "pets.csv").write_text("wnid,class\ntabby,cat\npug,dog\n")
    return custom("pets", tmp_path / "pets.csv")


def _pool(root):
    """Images by camera, so that no folder is a class and names repeat."""
    images = {
        f"camera{c}": {f"{n}.jpg": trees.jpeg(10 * c + n) for n in range(6)} for c in range(2)
    }
    return trees.write_folder(root / "pool", images)


def _table(path, rows):
    path.write_text("".join(f"{','.join(row)}\n" for row in [("name", "wnid"), *rows]))
    return path


def _class(camera, number):
    return "tabby" if (camera + number) % 2 else "pug"


def _tables(root):
    """The first four images of each camera are for training, the others for validation."""
    return {
        split: _table(
            root / f"{split}.csv",
            [(f"camera{c}/{n}.jpg", _class(c, n)) for c in range(2) for n in numbers],
        )
        for split, numbers in (("train", range(4)), ("val", range(4, 6)))
    }


def test_a_table_by_path_says_which_images_of_a_mixed_folder_belong_to_a_split(tmp_path, pets):
    pool, tables = _pool(tmp_path), _tables(tmp_path)
    taken = {}
    for split, number in (("train", 8), ("val", 4)):
        (found,) = listings(pets, [pool], split, labels=tables[split], selection_fraction=0)
        assert not found.findings
        assert f"{12 - number} images are not in {split}.csv" in "\n".join(found.warnings)
        taken[split] = {item.source: item.wnid for item in found.items}
        assert len(taken[split]) == len({item.key for item in found.items}) == number
    assert not taken["train"].keys() & taken["val"].keys()
    both = taken["train"] | taken["val"]
    assert both == {f"camera{c}/{n}.jpg": _class(c, n) for c in range(2) for n in range(6)}


def test_the_commands_exit_with_0_and_leave_nothing_out(tmp_path, pets, capsys):
    pool, tables = _pool(tmp_path), _tables(tmp_path)
    for split, table in tables.items():
        command = ["convert", "folder", "--name", "pets", "--classes", str(tmp_path / "pets.csv")]
        command += ["--source", str(pool), "--labels", str(table), "--split", split]
        command += ["--output", str(tmp_path / "out"), "--workers", "1"]
        assert cli([*command, "--selection-fraction", "0", "--on-corrupt", "fail"]) == 0
    shown = capsys.readouterr()
    assert "left out" not in shown.out
    assert "8 images are not in val.csv" in shown.err


def _many(root):
    """Fifty images of each class in one folder, and a table of them."""
    pool = trees.write_folder(root, {"pool": {f"{n}.jpg": trees.jpeg(n) for n in range(100)}})
    rows = [(f"{n}.jpg", ("tabby", "pug")[n % 2]) for n in range(100)]
    return pool / "pool", _table(root / "train.csv", rows)


def test_train_alone_says_which_images_it_leaves_out_and_what_converts_them(tmp_path, pets, capsys):
    pool, table = _many(tmp_path)
    command = ["convert", "folder", "--name", "pets", "--classes", str(tmp_path / "pets.csv")]
    command += ["--source", str(pool), "--labels", str(table), "--workers", "1"]
    command += ["--output", str(tmp_path / "out")]
    assert cli([*command, "--split", "train"]) == 0
    note = "warning: train: 2 of 100 training images are held out as the split selection; "
    assert note + "--split selection converts them, --selection-fraction 0 keeps them\n" in (
        capsys.readouterr().err
    )
    assert cli([*command, "--split", "selection"]) == 0
    assert "held out" not in capsys.readouterr().err
    keys = [load_split(tmp_path / "out" / split)[1]["key"] for split in ("train", "selection")]
    assert [len(found) for found in keys] == [98, 2]
    assert len({key for found in keys for key in found}) == 100
    command[-1] = str(tmp_path / "all")
    assert cli([*command, "--split", "train", "--selection-fraction", "0"]) == 0
    assert "held out" not in capsys.readouterr().err


def test_nothing_is_said_if_no_image_is_left_out_or_selection_is_converted_too(tmp_path, pets):
    photos = _photos(tmp_path / "photos")  # with selection data of its own
    (train,) = listings(pets, [photos], "train", selection_fraction=0.5)
    assert not any("held out" in line for line in train.warnings)
    for found in listings(pets, [photos / "train"], selection_fraction=0.5):
        assert not any("held out" in line for line in found.warnings)


def test_a_fraction_that_leaves_no_training_image_is_refused(tmp_path, pets):
    trees.write_folder(tmp_path / "train", {"pug": {"1.jpg": b"1"}, "tabby": {"1.jpg": b"2"}})
    for split in (None, "train"):
        with pytest.raises(UsageError, match="holds out all 2 training images; give a smaller"):
            listings(pets, [tmp_path / "train"], split, selection_fraction=0.6)


def test_a_name_of_the_table_without_an_image_is_missed(tmp_path, pets):
    rows = [("camera0/1.jpg", "pug"), ("camera0/77.jpg", "pug"), ("camera1/2.png", "tabby")]
    table = _table(tmp_path / "some.csv", [*rows, ("camera9/1.jpg", "parrot")])
    pool = _pool(tmp_path)
    (pool / "camera0" / "3.webp").write_bytes(b"RIFF")
    (found,) = listings(pets, [pool], "train", labels=table, selection_fraction=0)
    # camera1/2.jpg has the name of the third row in another format; nobody asks for the parrot.
    assert [item.source for item in found.items] == ["camera0/1.jpg", "camera1/2.jpg"]
    assert [(f.path, f.reasons, f.images) for f in found.findings] == [
        ("some.csv", ("no-image",), 1)
    ]
    assert "1 names of some.csv have no image: camera0/77" in found.warnings


@pytest.mark.parametrize("name", ["{}.jpg", "./camera0/{}.jpg", "pool/camera0/{}.jpg"])
def test_forms_of_a_path(tmp_path, pets, name):
    pool = _pool(tmp_path)
    table = _table(tmp_path / "t.csv", [(name.format(5), "pug")])
    (found,) = listings(pets, [pool], "train", labels=table, selection_fraction=0)
    assert "camera0/5.jpg" in {item.source for item in found.items}
    assert not found.findings


def test_a_table_decides_about_class_folders_too(tmp_path, pets):
    """Otherwise the images of all splits would be in each."""
    images = {"tabby": {"1.jpg": b"1", "2.jpg": b"2"}, "pug": {"1.jpg": b"3"}}
    pool = trees.write_folder(tmp_path / "pool", images)
    table = _table(tmp_path / "val.csv", [("tabby/2.jpg", "tabby")])
    (found,) = listings(pets, [pool], "val", labels=table)
    assert [item.source for item in found.items] == ["tabby/2.jpg"]


def test_in_a_folder_of_one_split_every_image_needs_a_label(tmp_path, pets):
    folder = trees.write_folder(tmp_path, {"train": {"1.jpg": b"1", "2.jpg": b"2"}})
    table = _table(tmp_path / "t.csv", [("1.jpg", "pug")])
    for source in (folder, folder / "train"):
        (found,) = listings(pets, [source], "train", labels=table, selection_fraction=0)
        assert [f.reasons for f in found.findings] == [("no-label",)]


def test_labels_that_nothing_needs_are_told(tmp_path, pets):
    trees.write_folder(tmp_path / "train", {"pug": {"1.jpg": b"1"}})
    table = _table(tmp_path / "t.csv", [("1.jpg", "tabby")])
    (found,) = listings(pets, [tmp_path], labels=table, selection_fraction=0)
    assert any(line.startswith("t.csv: is not used") for line in found.warnings)


# ---------------------------------------------------------------------- selection data of one's own


def _photos(root):
    for split, first in (("train", 0), ("selection", 100), ("val", 200)):
        images = {
            wnid: {f"{first + n}.jpg": b"%d" % n for n in range(3)} for wnid in ("tabby", "pug")
        }
        trees.write_folder(root / split, images)
    return root


def _keys(found):
    return {listing.split: [item.key for item in listing.items] for listing in found}


def test_a_folder_of_that_name_is_the_selection_data(tmp_path, pets):
    photos = _photos(tmp_path / "photos")
    found = listings(pets, [photos], selection_fraction=0.5)
    assert [listing.split for listing in found] == ["train", "selection", "val"]
    assert {split: len(keys) for split, keys in _keys(found).items()} == {
        "train": 6,
        "selection": 6,
        "val": 6,
    }
    assert _keys(found)["selection"] == [
        *("pug_100", "pug_101", "pug_102", "tabby_100", "tabby_101", "tabby_102")
    ]
    # Each split alone is the same.
    for listing in found:
        (alone,) = listings(pets, [photos], listing.split, selection_fraction=0.5)
        assert (alone.items, alone.facts) == (listing.items, listing.facts)


def test_an_empty_folder_of_that_name_is_missed_and_not_replaced(tmp_path, pets):
    photos = _photos(tmp_path / "photos")
    for path in (photos / "selection").glob("*/*"):
        path.unlink()
    train, selection, _ = listings(pets, [photos], selection_fraction=0.5)
    assert (len(train.items), len(selection.items)) == (6, 0)
    assert [f.reasons for f in selection.findings] == [("no-images",)]


def test_a_lost_folder_of_that_name_is_not_replaced_in_any_call(tmp_path, pets):
    photos = _photos(tmp_path / "photos")
    (photos / "selection").rename(tmp_path / "elsewhere")
    (photos / "selection").symlink_to(tmp_path / "elsewhere")
    whole = listings(pets, [photos], selection_fraction=0.5)
    assert {split: len(keys) for split, keys in _keys(whole).items()} == {
        "train": 6,
        "selection": 0,
        "val": 6,
    }
    (train,) = listings(pets, [photos], "train", selection_fraction=0.5)
    assert train.items == whole[0].items
    with pytest.raises(UsageError, match="selection: link-to-folder"):
        listings(pets, [photos], "selection", selection_fraction=0.5)


def test_a_source_may_be_selection_data_as_a_whole(tmp_path, pets):
    photos = _photos(tmp_path / "photos")
    options = {"selection_fraction": 1}
    (found,) = listings(pets, [photos / "val"], "selection", **options)
    assert (found.split, len(found.items)) == ("selection", 6)
    (own,) = listings(pets, [photos], "selection", **options)
    assert own.items == listings(pets, [photos], "selection")[0].items
    for split in (None, "train"):
        with pytest.raises(UsageError, match="must be from 0 to below 1; 1 is for"):
            listings(pets, [photos], split, **options)
