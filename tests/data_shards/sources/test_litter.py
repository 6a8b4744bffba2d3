"""What NAS, trash, viewers and macOS leave among images is ignored, and counted."""

import shutil

import pytest

from data_shards.__main__ import cli
from data_shards.litter import is_litter, litter_in
from data_shards.sources.datasets import dataset
from data_shards.sources.imagenet import listings
from tests.data_shards import trees
from tests.data_shards.converted import converted, listing

DOG, CAT = trees.NINE[:2]
FOLDERS = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", ".Trash-1000", "$RECYCLE.BIN"),
    *("System Volume Information", "__MACOSX", ".Trashes", "lost+found"),
)


@pytest.mark.parametrize("name", [*FOLDERS, "$Recycle.Bin", "~snapshot", ".thumbnails", "._x.tar"])
def test_names_that_are_no_data(name):
    assert is_litter(name)
    assert litter_in(("a", name, "b")) == f"a/{name}"


@pytest.mark.parametrize("name", ["#x", "@home", "n01641577", "recycle", "~", "$1", "train.tar"])
def test_names_that_may_be_data(name):
    assert not is_litter(name)


def _train(source):
    return listings(dataset("imagenet9"), [source], "train", selection_fraction=0)[0]


def _littered(root):
    """A tree with a thumbnail of each image, and with deleted images, in folders of helpers."""
    images = trees.train_images((DOG, CAT), each=4)
    trees.write_folder(root / "train", images)
    for wnid, files in images.items():
        for name, content in files.items():
            thumbnail = root / "train" / wnid / "@eaDir" / name / "SYNOPHOTO_THUMB_M.jpg"
            thumbnail.parent.mkdir(parents=True)
            thumbnail.write_bytes(content)
    for name in FOLDERS:
        trees.write_folder(root / name / "train", trees.train_images((DOG,), each=9))
        trees.write_folder(root / "train" / CAT / name, {"deep": {"1.jpg": b"x"}})
    return images


def test_folders_of_helpers_are_counted_and_not_read(tmp_path):
    images = _littered(tmp_path)
    train = _train(tmp_path)
    assert {i.source.rpartition("/")[2] for i in train.items} == {
        name for files in images.values() for name in files
    }
    assert len(train.items) == 8
    assert not train.findings
    (told,) = (line for line in train.warnings if line.startswith("folders of other programs"))
    assert "@eaDir (3)" in told  # one at the top and one in each class
    assert "#recycle (2)" in told


def test_the_same_in_an_archive(tmp_path):
    images = _littered(tmp_path / "in")
    archive = shutil.make_archive(str(tmp_path / "out" / "train"), "tar", tmp_path / "in")
    train = _train(tmp_path / "out")
    assert archive == str(tmp_path / "out" / "train.tar")
    assert len(train.items) == sum(map(len, images.values()))
    assert not train.findings
    (told,) = (line for line in train.warnings if line.startswith("folders of other programs"))
    assert "@eaDir (3)" in told


def test_the_plan_the_report_and_check_name_them_once(tmp_path, capsys):
    _littered(tmp_path / "in")
    command = ["convert", "imagenet9", "--source", str(tmp_path / "in"), "--output", "o"]
    assert cli([*command, "--dry-run", "--workers", "1"]) == 0
    assert capsys.readouterr().err.count("@eaDir (3)") == 1
    assert cli(["check", str(tmp_path / "in"), "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("8 images checked")
    assert shown.count("@eaDir (3)") == 1


def test_images_below_a_class_folder_are_taken_and_warned_of(tmp_path):
    images = trees.train_images((DOG,), each=2)
    folder = trees.write_folder(tmp_path / "train", images)
    trees.write_folder(folder / DOG, {"deleted": {"1.jpg": b"1", "2.jpg": b"2"}})
    train = _train(folder)
    assert len(train.items) == 4
    assert (
        f"2 images lie in folders below a class folder and count as its class: {DOG}/deleted/1.jpg"
    ) in train.warnings
    assert not any("below a class" in w for w in _train(_archive(tmp_path, images)).warnings)


def _archive(folder, images):
    return trees.write_train_tar(folder / "ILSVRC2012_img_train.tar", images)


def _with_hidden_archives(root, images):
    """The tar of each class with its AppleDouble file; inside one tar, and side by side."""
    classes = root / "classes" / "train"
    for wnid, files in images.items():
        trees.write_tar(classes / f"{wnid}.tar", sorted(files.items()))
        (classes / f"._{wnid}.tar").write_bytes(b"\0\x05\x16\x07" + bytes(60))
    names = sorted(path.name for path in classes.iterdir())
    whole = [(name, (classes / name).read_bytes()) for name in names]
    whole += [(f"__MACOSX/{name}", content) for name, content in whole]
    trees.write_tar(root / "tar" / "train.tar", whole)
    return [root / "classes", root / "tar", root / "tar" / "train.tar"]


def test_hidden_archives_are_ignored_outside_and_inside_a_tar(tmp_path, capsys):
    images = trees.train_images((DOG, CAT), each=3)
    for source in _with_hidden_archives(tmp_path, images):
        train = _train(source)
        assert len(train.items) == 6
        assert not train.findings
        assert any(f"._{DOG}.tar" in line for line in train.warnings)
        assert cli(["check", str(source), "--workers", "1", "--json"]) == 0
        assert capsys.readouterr().out == ""


def test_a_hidden_archive_that_is_the_source_is_read(tmp_path):
    images = trees.train_images((DOG,), each=3)
    hidden = trees.write_tar(tmp_path / ".train.tar", trees.nested(images))
    assert len(_train(hidden).items) == 3
    mine = trees.write_tar(tmp_path / "#recycle" / "train.tar", trees.nested(images))
    assert len(_train(mine.parent).items) == 3


def test_hidden_links_are_ignored_like_hidden_files(tmp_path):
    folder = trees.write_folder(tmp_path / "train", trees.train_images((DOG,), each=2))
    (folder / DOG / ".#n1.JPEG").symlink_to("me@host.1234")  # the lock of an editor
    (folder / ".cache").symlink_to(tmp_path)
    assert not _train(folder).findings


@pytest.fixture
def shards(tmp_path):
    output = tmp_path / "shards"
    for split in ("train", "val"):
        converted(listing(tmp_path / split, 8, split=split), output)
    return output


def test_litter_beside_and_in_splits_is_no_split_and_no_shard(shards, capsys):
    shutil.copytree(shards / "train", shards / "@Recycle")
    (shards / "#recycle").mkdir()
    (shards / "#recycle" / "val-000007.tar").write_bytes(b"deleted")
    (shards / "notes").mkdir()
    (shards / "notes" / "._a.tar").write_bytes(b"x")
    (shards / "train" / "._train-000000.tar").write_bytes(b"x")
    (shards / "train" / "@eaDir").mkdir()
    assert cli(["verify", str(shards), "--workers", "1"]) == 0
    assert "@Recycle" not in capsys.readouterr().out
    assert cli(["inspect", str(shards)]) == 0
    assert "@Recycle" not in capsys.readouterr().out
