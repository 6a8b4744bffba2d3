"""Names under which others distribute ImageNet, and archives that must be unpacked first."""

import gzip
import shutil
import zipfile

import pytest

from data_shards.__main__ import cli
from data_shards.errors import UsageError
from data_shards.sources.datasets import dataset
from data_shards.sources.imagenet import listings
from data_shards.sources.listing import read_item
from tests.data_shards import trees

TRAIN = trees.train_images(each=4)
VAL = trees.val_images(each=2)


def _list(*sources, split=None, **options):
    options = {"selection_fraction": 0, **options}
    return listings(dataset("imagenet9"), list(sources), split, **options)


def _content(listing):
    return [(i.key, i.label, i.wnid, read_item(i)) for i in listing.items]


def _hugging_face(images):
    """Flat, with the class at the end of the name: n01440764_18_n01440764.JPEG."""
    return sorted(
        (name.replace(".JPEG", f"_{wnid}.JPEG"), content)
        for wnid, files in images.items()
        for name, content in files.items()
    )


def _write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files:
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    trees.write_folder(root / "train", TRAIN)
    trees.write_folder(root / "val", VAL)
    return _list(root)


@pytest.mark.parametrize("form", ["folders", "archives", "mixed", "class folders"])
def test_the_names_of_hugging_face_give_the_same_images(tmp_path, plain, form):
    train, val = _hugging_face(TRAIN), _hugging_face(VAL)
    if form == "folders":
        _write(tmp_path / "train", train)
        _write(tmp_path / "val", val)
    elif form == "archives":
        trees.write_tar(tmp_path / "train_images_0.tar", train[::2])
        trees.write_tar(tmp_path / "train_images_1.tar", train[1::2])
        trees.write_tar(tmp_path / "val_images.tar", val)
    elif form == "mixed":
        _write(tmp_path / "all", train + val)
    else:
        for split, files in (("train", train), ("val", val)):
            for name, content in files:
                folder = tmp_path / split / name.rpartition("_")[2].removesuffix(".JPEG")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    found = _list(tmp_path)
    assert [listing.split for listing in found] == ["train", "val"]
    assert [_content(listing) for listing in found] == [_content(listing) for listing in plain]
    assert not any(listing.findings for listing in found)


def test_a_name_of_two_classes_says_none(tmp_path):
    wrong = [("n01641577_1_n02123045.JPEG", b"x"), ("n01641577_1.JPEG", b"x")]
    folder = _write(tmp_path / "train", [*wrong, ("n01641577_2_n01641577.JPEG", b"frog")])
    (train,) = _list(folder)
    assert [i.key for i in train.items] == ["n01641577_2"]
    assert {(f.path, f.reasons) for f in train.findings} == {(n, ("no-label",)) for n, _ in wrong}


def test_a_folder_that_holds_only_a_zip_says_so(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "imagenet.zip", "w") as file:
        file.writestr("train/n01641577/1.jpg", b"x")
    with pytest.raises(UsageError, match=r"holds imagenet\.zip, which is compressed: unpack it"):
        _list(tmp_path)
    assert cli(["check", str(tmp_path), "--workers", "1"]) == 0
    assert "unpack archives such as imagenet.zip" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["val.zip", "ILSVRC2012_img_val.tar.gz", "val_images.tar.gz"])
def test_a_split_that_is_still_packed_is_missed(tmp_path, name):
    trees.write_folder(tmp_path / "train", TRAIN)
    (tmp_path / name).write_bytes(b"x")
    train, val = _list(tmp_path)
    assert (train.findings, val.items) == ((), ())
    assert [(f.path, f.reasons, f.images) for f in val.findings] == [
        (name, ("compressed-archive",), 0)
    ]
    # Unpacked, it may stay where it is.
    trees.write_folder(tmp_path / "val", VAL)
    assert not any(listing.findings for listing in _list(tmp_path))


def test_a_class_that_is_still_packed_is_missed(tmp_path):
    folder = trees.write_folder(tmp_path / "train", TRAIN)
    frog, dog = "n01641577", "n02085620"
    for wnid in (frog, dog, "n01440764"):  # the last is not in 9-class ImageNet
        (folder / f"{wnid}.tar.gz").write_bytes(gzip.compress(b"x"))
    shutil.rmtree(folder / frog)
    (train,) = _list(folder)
    assert [(f.path, f.reasons) for f in train.findings] == [
        (f"{frog}.tar.gz", ("compressed-archive",))
    ]
    with pytest.raises(UsageError, match=r"n01641577\.tar\.gz: compressed-archive; unpack it"):
        _list(trees.write_folder(tmp_path / "only", {"train": {f"{frog}.tar.gz": b"x"}}))


def test_tables_of_boxes_are_no_images(tmp_path):
    trees.write_folder(tmp_path / "train", TRAIN)
    for name in ("ILSVRC2012_bbox_val_v3.tgz", "ILSVRC2012_bbox_train_v2.tar.gz", "notes.zip"):
        (tmp_path / name).write_bytes(b"x")
    (train,) = _list(tmp_path)
    assert not train.findings


def test_another_md5_is_told_of_the_archive_not_of_an_image(tmp_path, capsys):
    archive = trees.write_val_tar(tmp_path / "in" / "ILSVRC2012_img_val.tar", VAL)
    trees.write_devkit(tmp_path / "in" / "ILSVRC2012_devkit_t12.tar.gz", VAL)
    command = ["convert", "imagenet9", "--source", str(archive), "--workers", "1"]
    command += ["--output", str(tmp_path / "out")]
    assert cli(command) == 1
    shown = capsys.readouterr().out
    assert "not the published archive: ILSVRC2012_img_val.tar has another md5" in shown
    assert "suspect" not in shown
    assert cli([*command, "--json"]) == 1
    assert '"suspect": 0' in capsys.readouterr().out
