"""What was refused or unknown is named, counted as images, and changes the exit code."""

import json
import os
import shutil

import pytest

from data_shards.__main__ import cli
from data_shards.errors import UsageError
from data_shards.format.manifest import load_manifest
from data_shards.sources.datasets import dataset
from data_shards.sources.imagenet import listings
from tests.data_shards import trees

TRAIN = trees.train_images(trees.NINE[:2], each=10)
VAL = trees.val_images(trees.NINE[:2], each=3)


def _convert(source, output, *more):
    command = ["convert", "imagenet9", "--source", str(source), "--output", str(output)]
    return cli([*command, "--selection-fraction", "0.1", "--workers", "1", *more])


def _lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _link(root, outside):
    (root / "val").symlink_to(trees.write_folder(outside / "val", VAL))


def _webp(root, _):
    renamed = {w: {f"{n}.webp": c for n, c in files.items()} for w, files in VAL.items()}
    trees.write_folder(root / "val", renamed)


def _flat(root, _):
    (root / "val").mkdir()
    for number, (_, content) in enumerate(trees.flat(VAL)):
        (root / "val" / f"{number}.JPEG").write_bytes(content)


def _flat_webp(root, _):
    (root / "val").mkdir()
    for number in range(6):
        (root / "val" / f"{number}.webp").write_bytes(b"RIFF")


def _empty(root, _):
    (root / "val").mkdir()


def _other_classes(root, _):
    trees.write_folder(root / "val", trees.val_images(trees.OTHERS))


@pytest.mark.parametrize(
    ("lose", "reason", "images"),
    [
        (_link, "link-to-folder", 1),
        (_webp, "extension", 6),
        (_flat, "unknown-class", 6),
        (_flat_webp, "unknown-class", 6),
        (_empty, "no-images", 1),
        (_other_classes, "no-images", 1),
    ],
)
def test_a_split_of_which_nothing_is_left_is_not_silent(tmp_path, capsys, lose, reason, images):
    source = tmp_path / "in"
    trees.write_folder(source / "train", TRAIN)
    lose(source, tmp_path)
    assert _convert(source, tmp_path / "plan", "--dry-run") == 1
    shown = capsys.readouterr().out
    assert "plan/val: nothing to write" in shown
    assert reason in shown
    assert _convert(source, tmp_path / "none", "--on-corrupt", "fail") == 1
    assert f"({reason})" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    output = tmp_path / "out"
    assert _convert(source, output, "--json") == 1
    summaries = {line["split"]: line for line in _lines(capsys) if "split" in line}
    assert (summaries["val"]["state"], summaries["val"]["excluded"]) == ("empty", images)
    assert [summaries[split]["samples"] for split in ("train", "selection")] == [18, 2]
    if lose is _flat:
        # No limit lets a whole split go; without it in the command, all is well.
        assert _convert(source, output, "--max-corrupt", "100") == 1
        assert _convert(source, output, "--split", "train") == 0


def test_only_the_wanted_split_is_missed(tmp_path):
    trees.write_folder(tmp_path / "train", TRAIN)
    (tmp_path / "val").mkdir()
    (tmp_path / "test").symlink_to("/nowhere")  # no split of this data set
    trees.write_folder(tmp_path / "notes" / "val", {"readme": {"a.txt": b"x"}})
    found = listings(dataset("imagenet9"), [tmp_path], "train")
    assert [listing.split for listing in found] == ["train"]
    assert not any(listing.findings for listing in found)
    trees.write_folder(tmp_path / "val", VAL)
    found = listings(dataset("imagenet9"), [tmp_path], selection_fraction=0)
    assert [(listing.split, len(listing.findings)) for listing in found] == [
        ("train", 0),
        ("val", 0),
    ]


def test_a_second_source_without_a_split_is_told_with_the_first(tmp_path):
    trees.write_folder(tmp_path / "a" / "train", TRAIN)
    (tmp_path / "b").mkdir()
    for number in range(3):
        (tmp_path / "b" / f"{number}.jpg").write_bytes(b"x")
    for sources in (["a", "b"], ["b", "a"]):
        paths = [tmp_path / name for name in sources]
        (train,) = listings(dataset("imagenet9"), paths, selection_fraction=0)
        assert [(f.path, f.reasons, f.images) for f in train.findings] == [
            ("b", ("unknown-class",), 3)
        ]


def test_a_split_that_the_data_set_does_not_have_is_told(tmp_path):
    trees.write_folder(tmp_path / "train", TRAIN)
    trees.write_folder(tmp_path / "test", VAL)
    (train,) = listings(dataset("imagenet9"), [tmp_path], selection_fraction=0)
    told = "imagenet9 has no split test, so its folders and archives are not read"
    assert told in train.warnings
    (train,) = listings(dataset("imagenet9"), [tmp_path], "train", selection_fraction=0)
    assert told not in train.warnings
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UsageError, match="holds no image of imagenet9; its names are of test"):
        listings(dataset("imagenet9"), [tmp_path])


def test_an_empty_source_among_others_is_missed(tmp_path):
    trees.write_folder(tmp_path / "a" / "train", TRAIN)
    (tmp_path / "b").mkdir()  # a disk that is not mounted
    (train,) = listings(dataset("imagenet9"), [tmp_path / "a", tmp_path / "b"], "train")
    assert [(f.path, f.reasons) for f in train.findings] == [("b", ("no-images",))]
    # A source of another split is no mistake.
    trees.write_folder(tmp_path / "b" / "val", VAL)
    (train,) = listings(dataset("imagenet9"), [tmp_path / "a", tmp_path / "b"], "train")
    assert not train.findings


def test_a_split_that_lies_in_one_of_two_sources_is_there(tmp_path):
    trees.write_folder(tmp_path / "a" / "train", TRAIN)
    (tmp_path / "a" / "val").mkdir()
    trees.write_folder(tmp_path / "b" / "val", VAL)
    found = listings(dataset("imagenet9"), [tmp_path / "a", tmp_path / "b"], selection_fraction=0)
    assert [(listing.split, len(listing.items)) for listing in found] == [("train", 20), ("val", 6)]
    assert not any(listing.findings for listing in found)


def test_a_split_of_a_corrupted_data_set_may_be_lost_too(tmp_path):
    trees.write_folder(tmp_path / "fog" / "3", VAL)
    (tmp_path / "snow").mkdir()
    (tmp_path / "snow" / "3").symlink_to(tmp_path.parent)
    fog, snow = listings(dataset("imagenet9-c"), [tmp_path])
    assert (fog.split, snow.split, len(fog.items), len(snow.items)) == ("fog-3", "snow-3", 6, 0)
    assert [f.reasons for f in snow.findings] == [("link-to-folder",)]


# ------------------------------------------------------------------------- folders count as images


def _misspelt(root):
    """Twenty images, ten of them in a folder whose name is no class."""
    cat = trees.NINE[1]
    images = {wnid.replace(cat, cat[:-1]): files for wnid, files in TRAIN.items()}
    return trees.write_folder(root / "train", images)


def test_a_folder_counts_as_its_images(tmp_path, capsys):
    source = _misspelt(tmp_path)
    command = ["--split", "train", "--selection-fraction", "0"]
    assert _convert(source, tmp_path / "no", *command, "--max-corrupt", "9") == 1
    assert "with it 10 of 20 images are left out" in capsys.readouterr().err
    assert _convert(source, tmp_path / "no", *command, "--max-corrupt", "0.4") == 1
    output = tmp_path / "out"
    assert _convert(source, output, *command, "--max-corrupt", "10") == 0
    shown = capsys.readouterr().out
    assert "left out: 10" in shown
    assert f"{trees.NINE[1][:-1]}: unknown-class (10 images)" in shown
    assert _convert(source, output, *command, "--json") == 1  # without a limit
    finding, summary = _lines(capsys)
    assert (finding["images"], summary["refused"], summary["excluded"]) == (10, 10, 10)
    assert _convert(source, output, *command, "--max-corrupt", "0.5") == 0
    assert cli(["verify", str(output)]) == 0
    capsys.readouterr()
    assert cli(["inspect", str(output), "--json"]) == 0
    (found,) = _lines(capsys)
    assert (found["excluded"], found["excluded_reasons"]) == (10, {"unknown-class": 10})
    assert [e.images for e in load_manifest(output / "train").excluded] == [10]


def test_in_parts_a_folder_counts_the_same(tmp_path, capsys):
    command = ["--split", "train", "--selection-fraction", "0", "--samples-per-shard", "5"]
    source = _misspelt(tmp_path)
    for part in ("1/2", "2/2"):
        assert _convert(source, tmp_path / "out", *command, "--part", part) == 0
    merge = ["merge", str(tmp_path / "out"), "--split", "train", "--workers", "1"]
    assert cli([*merge, "--max-corrupt", "9"]) == 1
    assert "10 of 20 images" in capsys.readouterr().err
    assert cli([*merge, "--max-corrupt", "10"]) == 0


def _unreadable_tar(folder):
    (folder / f"{trees.NINE[1]}.tar").symlink_to("/nowhere.tar")


def _linked_class(folder):
    (folder / trees.NINE[1]).symlink_to(shutil.copytree(folder, folder.parent / "elsewhere"))


def _too_deep(folder):
    os.makedirs(folder / trees.NINE[0] / "/".join("d" * 40))


def _closed(folder):
    (folder / "missing-mount").symlink_to("/nowhere")


@pytest.mark.parametrize("lose", [_unreadable_tar, _linked_class, _too_deep, _closed])
def test_no_limit_allows_a_folder_that_was_not_read(tmp_path, capsys, lose):
    folder = trees.write_folder(tmp_path / "train", trees.train_images(trees.NINE[:1], 10))
    lose(folder)
    command = ["--split", "train", "--selection-fraction", "0"]
    assert _convert(folder, tmp_path / "no", *command, "--max-corrupt", "1000") == 1
    assert "with it an unknown number of images are left out" in capsys.readouterr().err
    assert _convert(folder, tmp_path / "out", *command) == 1
    assert "left out: 1 whole folder or archive" in capsys.readouterr().out
    assert _convert(folder, tmp_path / "out", *command, "--max-corrupt", "1000") == 1


def test_a_link_to_a_folder_of_the_source_loses_nothing(tmp_path):
    folder = trees.write_folder(tmp_path / "train", trees.train_images(trees.NINE[:1], 10))
    (folder / "again").symlink_to(folder / trees.NINE[0])
    (train,) = listings(dataset("imagenet9"), [folder], selection_fraction=0)
    assert [(f.reasons, f.images) for f in train.findings] == [(("link-to-folder",), 1)]


def test_images_without_a_severity_are_counted(tmp_path):
    trees.write_folder(tmp_path / "fog" / "3", VAL)
    trees.write_folder(tmp_path / "fog" / "mild", VAL)
    (fog,) = listings(dataset("imagenet9-c"), [tmp_path])
    assert sum(finding.images for finding in fog.findings) == 6


def test_images_in_no_class_folder_are_told_with_the_cure(tmp_path):
    trees.write_folder(tmp_path / "train", {**TRAIN, "kittens": {"1.jpg": b"x", "2.jpg": b"x"}})
    (train,) = listings(dataset("imagenet9"), [tmp_path], selection_fraction=0)
    (told,) = (line for line in train.warnings if "no class folder" in line)
    assert told.startswith("2 images lie in no class folder, for example in train/kittens")
    assert "--labels" in told
    with pytest.raises(UsageError, match=r"kittens: unknown-class; --labels takes"):
        listings(dataset("imagenet9"), [tmp_path / "train" / "kittens"])
