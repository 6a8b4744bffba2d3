"""The same images from every form of source; nothing lost silently, no label by position."""

import hashlib
import os
import socket
import tarfile

import pytest

from data_shards.classes import shipped_class_map
from data_shards.errors import DataShardsError, UsageError
from data_shards.sources.datasets import SUMMARIES, custom, dataset
from data_shards.sources.imagenet import listings
from data_shards.sources.listing import read_item
from tests.data_shards import trees

_LABELS = shipped_class_map("imagenet1k").labels
_NINE = shipped_class_map("imagenet9").labels


def _list(name, *sources, split=None, **options):
    return listings(dataset(name), sources, split, **options)


def _one(*arguments, **options):
    (listing,) = _list(*arguments, **options)
    return listing


def _content(listing):
    """What matters of a listing, whatever form its source had."""
    return [(i.key, i.label, i.wnid, i.flags, read_item(i)) for i in listing.items]


def _expected(images, labels):
    return sorted(
        (name.rpartition(".")[0], labels[wnid], wnid, (), content)
        for wnid, files in images.items()
        if wnid in labels
        for name, content in files.items()
    )


def _bytes(listing):
    return {read_item(item) for item in listing.items}


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same training and validation images in every form, by name of the form."""
    root = tmp_path_factory.mktemp("forms")
    train, val = trees.train_images(), trees.val_images()
    folder = root / "folder"
    trees.write_folder(folder / "train", train)
    trees.write_folder(folder / "val", val)
    archives = root / "archives"
    trees.write_train_tar(archives / "ILSVRC2012_img_train.tar", train)
    trees.write_val_tar(archives / "ILSVRC2012_img_val.tar", val)
    trees.write_devkit(archives / "ILSVRC2012_devkit_t12.tar.gz", val)
    classes = root / "classes" / "train"
    for wnid, files in train.items():
        trees.write_tar(classes / f"{wnid}.tar", sorted(files.items()))
    kaggle = trees.write_kaggle(root / "kaggle", train, val)
    return {
        "folder": {"train": [folder], "val": [folder]},
        "split folder": {"train": [folder / "train"], "val": [folder / "val"]},
        "folder of archives": {"train": [archives], "val": [archives]},
        "archive": {
            "train": [archives / "ILSVRC2012_img_train.tar"],
            "val": [archives / "ILSVRC2012_img_val.tar"],
        },
        "tar a class": {"train": [classes], "val": [folder / "val"]},
        "kaggle": {"train": [kaggle], "val": [kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val"]},
        "class folders": {
            "train": [folder / "train" / wnid for wnid in reversed(trees.NINE)],
            "val": [folder / "val"],
        },
    }


_FORMS = (
    *("folder", "split folder", "folder of archives", "archive", "tar a class", "kaggle"),
    "class folders",
)


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("name", ["imagenet1k", "imagenet9"])
def test_every_form_gives_the_same_images(forms, form, name):
    labels = _LABELS if name == "imagenet1k" else _NINE
    options = {"selection_fraction": 0, "verify_md5": False}
    train = _one(name, *forms[form]["train"], split="train", **options)
    val = _one(name, *forms[form]["val"], split="val", **options)
    there = trees.NINE if form == "class folders" else trees.WNIDS
    assert _content(train) == _expected(trees.train_images(there), labels)
    assert _content(val) == _expected(trees.val_images(), labels)
    assert train.classes == val.classes == dataset(name).class_map.classes
    assert not train.findings
    assert not val.findings


@pytest.mark.parametrize("form", ["folder", "folder of archives", "kaggle"])
def test_without_a_split_all_that_are_there_are_listed(forms, form):
    found = _list("imagenet9", *forms[form]["train"], selection_fraction=0.2)
    assert [listing.split for listing in found] == ["train", "selection", "val"]
    for listing in found:
        alone = _one(
            "imagenet9", *forms[form]["train"], split=listing.split, selection_fraction=0.2
        )
        assert alone.items == listing.items
        assert alone.facts == listing.facts


def test_items_say_where_they_come_from(forms):
    sources = {
        form: _one("imagenet9", *forms[form]["val"], split="val").items[0].source
        for form in ("folder", "split folder", "archive", "folder of archives", "kaggle")
    }
    name = "ILSVRC2012_val_00000001.JPEG"
    assert sources == {
        "folder": f"val/n02085620/{name}",
        "split folder": f"n02085620/{name}",
        "archive": f"ILSVRC2012_img_val.tar/{name}",
        "folder of archives": f"ILSVRC2012_img_val.tar/{name}",
        "kaggle": name,
    }
    train = _one("imagenet9", *forms["archive"]["train"], split="train", selection_fraction=0)
    assert train.items[0].source == ("ILSVRC2012_img_train.tar/n01641577.tar/n01641577_1.JPEG")


def test_selection_is_the_seeded_part_of_each_class(forms):
    source = forms["folder"]["train"]
    whole = _one("imagenet1k", *source, split="train", selection_fraction=0)
    parts = {}
    for seed in (0, 1):
        options = {"selection_fraction": 0.3, "seed": seed}
        train = _one("imagenet1k", *source, split="train", **options)
        selection = _one("imagenet1k", *source, split="selection", **options)
        assert sorted(_content(train) + _content(selection)) == _content(whole)
        assert sorted(i.wnid for i in selection.items) == sorted(trees.WNIDS * 3)
        parts[seed] = {item.key for item in selection.items}
        archive = _one("imagenet1k", *forms["archive"]["train"], split="selection", **options)
        assert _content(archive) == _content(selection)
        nine = _one("imagenet9", *source, split="selection", **options)
        assert {item.key for item in nine.items} < parts[seed]
    assert parts[0] != parts[1]


def test_selection_hardly_depends_on_which_images_are_there(tmp_path):
    images = trees.train_images(trees.NINE, each=40)
    options = {"split": "selection", "selection_fraction": 0.2}
    folder = trees.write_folder(tmp_path / "train", images)
    before = {item.key for item in _one("imagenet9", folder, **options).items}
    gone = next(name for name in images["n02085620"] if name.split(".")[0] not in before)
    (folder / "n02085620" / gone).unlink()
    after = {item.key for item in _one("imagenet9", folder, **options).items}
    assert after == before


def test_stylised_copies_join_the_training_images_but_not_those_of_selection(forms, tmp_path):
    # Copies in another format, and one without an original.
    copies = {
        wnid: {name.replace(".JPEG", ".png"): b"styled " + content for name, content in f.items()}
        for wnid, f in trees.train_images().items()
    }
    copies["n02085620"]["n02085620_99999.png"] = b"styled alone"
    styled = trees.write_folder(tmp_path / "styled", copies)
    train, selection = _list(
        "imagenet9",
        *forms["split folder"]["train"],
        stylised=[styled],
        selection_fraction=0.2,
        seed=4,
    )
    marked = [item for item in train.items if item.flags]
    assert {item.flags for item in marked} == {("stylised",)}
    assert all(item.key.startswith("stylised_") for item in marked)
    plain = {item.key for item in train.items} - {item.key for item in marked}
    held_out = {item.key for item in selection.items}
    originals = {item.key.removeprefix("stylised_") for item in marked}
    assert originals == plain | {"n02085620_99999"}
    assert not originals & held_out
    assert not any(item.flags for item in selection.items)
    assert all(read_item(item).startswith(b"styled ") for item in marked)
    assert train.facts["stylised"] == len(marked)
    assert f"{len(held_out)} stylised copies of selection images were left out" in train.warnings


@pytest.mark.parametrize("form", ["archive", "folder"])
@pytest.mark.parametrize(("name", "wnids"), [("imagenet-a", 3), ("imagenet9-a", 2)])
def test_imagenet_a(tmp_path, form, name, wnids):
    images = trees.adversarial_images()
    if form == "archive":
        files = [*trees.nested(images, "imagenet-a"), ("imagenet-a/README.txt", b"hello")]
        source = trees.write_tar(tmp_path / "imagenet-a.tar", files)
    else:
        source = trees.write_folder(tmp_path / "imagenet-a", images)
        (source / "README.txt").write_text("hello")
    listing = _one(name, source)
    kept = list(images)[:wnids]
    assert listing.split == "test"
    assert _bytes(listing) == {c for wnid in kept for c in images[wnid].values()}
    labels = dataset(name).class_map.labels
    assert all(item.label == labels[item.wnid] for item in listing.items)
    keys = [item.key for item in listing.items]
    assert len(set(keys)) == len(keys) == 4 * wnids
    assert all(key.isascii() and key.replace("_", "").replace("-", "").isalnum() for key in keys)
    assert any("README.txt" in line for line in listing.warnings)
    # Of 9-class ImageNet, 21 synsets are known to be absent; 19 of the other 21 are missed.
    missing = "19 of 21 class folders" if name == "imagenet9-a" else "197 of 200 class folders"
    assert any(line.startswith(missing) for line in listing.warnings)


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("corrupted")
    images = {
        (corruption, severity): {
            wnid: {name: content + bytes([severity]) for name, content in files.items()}
            for wnid, files in trees.val_images().items()
        }
        for corruption in ("defocus_blur", "zoom_blur")
        for severity in (1, 3)
    }
    files = [f for (c, s), i in images.items() for f in trees.nested(i, c, str(s))]
    trees.write_tar(root / "archives" / "blur.tar", files)
    for (corruption, severity), i in images.items():
        trees.write_folder(root / "folders" / "blur" / corruption / str(severity), i)
    return root, images


@pytest.mark.parametrize("form", ["archives", "archives/blur.tar", "folders", "folders/blur"])
@pytest.mark.parametrize("name", ["imagenet-c", "imagenet9-c"])
def test_imagenet_c(corrupted, form, name):
    root, images = corrupted
    labels = dataset(name).class_map.labels
    found = _list(name, root / form)
    assert [listing.split for listing in found] == [
        "defocus_blur-1", "defocus_blur-3", "zoom_blur-1", "zoom_blur-3",
    ]  # fmt: skip
    for listing, wanted in zip(found, images.values(), strict=True):
        assert _content(listing) == _expected(wanted, labels)
    alone = _one(name, root / form, split="zoom_blur-3")
    assert alone == found[-1]


@pytest.mark.parametrize("below", ["zoom_blur", "zoom_blur/3"])
def test_imagenet_c_from_a_folder_further_down(corrupted, below):
    root, images = corrupted
    listing = _one("imagenet9-c", root / "folders" / "blur" / below, split="zoom_blur-3")
    assert _content(listing) == _expected(images["zoom_blur", 3], _NINE)


def test_clean_images_are_no_split_of_imagenet_c(forms):
    with pytest.raises(UsageError, match=r"holds no image of imagenet-c; .*no-severity"):
        _list("imagenet-c", *forms["split folder"]["val"])


def test_missing_classes_shift_no_label_and_are_told(tmp_path):
    images = trees.train_images(("n02206856", "n15075141"))
    folder = trees.write_folder(tmp_path / "train", images)
    listing = _one("imagenet9", folder, selection_fraction=0)
    assert {item.label for item in listing.items} == {8}
    told = "\n".join(listing.warnings)
    assert "imagenet9 train: 10 images, but 54,600 are published" in told
    assert "41 of 42 class folders have no images: n01641577, " in told
    assert "these classes have none: dog, cat, frog, turtle, bird and 3 more" in told
    assert "synsets that are not in imagenet9: 1" in told
    assert not listing.findings


def test_a_full_set_warns_of_nothing(tmp_path):
    images = {wnid: {f"{wnid}_1.JPEG": b""} for wnid in shipped_class_map("imagenet_a").labels}
    for i in range(7300):
        images["n01498041"][f"n01498041_{i + 2}.JPEG"] = b""
    source = trees.write_tar(tmp_path / "a.tar", trees.nested(images, "imagenet-a"))
    listing = _one("imagenet-a", source)
    assert len(listing.items) == 7500
    assert not listing.warnings


def test_what_is_not_taken_is_told(tmp_path):
    folder = trees.write_folder(tmp_path / "src" / "train", trees.train_images(trees.NINE[:1], 3))
    dog = folder / "n02085620"
    (tmp_path / "secret.JPEG").write_bytes(b"secret")
    (dog / "out.JPEG").symlink_to(tmp_path / "secret.JPEG")
    (dog / "up.JPEG").symlink_to("../../../secret.JPEG")
    (dog / "null.JPEG").symlink_to("/dev/null")
    (dog / "broken.JPEG").symlink_to("nowhere")
    (dog / "inside.JPEG").symlink_to("n02085620_1.JPEG")
    (dog / "folder.JPEG").mkdir()
    (folder / "n02123045").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(dog / "fifo.JPEG")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "a.tar")
    server = socket.socket(socket.AF_UNIX)
    here = os.open(dog, os.O_RDONLY)
    server.bind(f"/proc/self/fd/{here}/s.JPEG")
    os.close(here)
    server.close()
    (dog / "photo.gif").write_bytes(b"GIF89a")
    (dog / "half.JPEG.part").write_bytes(b"x")
    (dog / ".DS_Store").write_bytes(b"x")
    (dog / "Thumbs.db").write_bytes(b"x")
    (dog / "._n02085620_1.JPEG").write_bytes(b"x")
    trees.write_folder(folder, {"kittens": {"a.jpg": b"x"}, ".cache": {"b.jpg": b"x"}})
    (dog / "deep" / "er").mkdir(parents=True)
    (dog / "deep" / "er" / "c.PNG").write_bytes(b"deep")

    listing = _one("imagenet9", tmp_path / "src", split="train", selection_fraction=0)
    names = {item.source.removeprefix("train/n02085620/") for item in listing.items}
    assert names == {
        "n02085620_1.JPEG", "n02085620_8.JPEG", "n02085620_15.JPEG", "inside.JPEG",
        "deep/er/c.PNG",
    }  # fmt: skip
    assert b"secret" not in _bytes(listing)
    assert [f.path for f in listing.findings] == sorted(f.path for f in listing.findings)
    assert {f.verdict for f in listing.findings} == {"refused"}
    reasons = {f.path.removeprefix("train/"): f.reasons for f in listing.findings}
    assert reasons == {
        "n02085620/out.JPEG": ("link-out-of-source",),
        "n02085620/up.JPEG": ("link-out-of-source",),
        "n02085620/null.JPEG": ("link-out-of-source",),
        "n02085620/broken.JPEG": ("unreadable",),
        "n02085620/fifo.JPEG": ("fifo",),
        "n02085620/s.JPEG": ("socket",),
        "n02085620/photo.gif": ("extension",),
        "n02085620/half.JPEG.part": ("extension",),
        "n02123045": ("link-to-folder",),
        "loop": ("link-to-folder",),
        "pipe": ("fifo",),
        "a.tar": ("fifo",),
        "kittens": ("unknown-class",),
    }
    ignored = next(line for line in listing.warnings if "not images by their names" in line)
    assert ignored.startswith("3 files are not images by their names: train/n02085620/")
    assert "folders of other programs are not read: .cache (1)" in listing.warnings


def test_a_linked_source_is_followed(forms, tmp_path):
    (tmp_path / "train").symlink_to(forms["split folder"]["train"][0])
    listing = _one("imagenet9", tmp_path / "train", split="train", selection_fraction=0)
    assert _content(listing) == _expected(trees.train_images(), _NINE)


def test_odd_names_get_safe_different_and_lasting_keys(tmp_path):
    names = [
        b"a.b.jpg", b"a b.jpg", b"a_b.jpg", b"a_b.png", b"A_B.JPG", b"\xff\xfe.jpg", b"\xff.jpg",
        "grün.jpg".encode(), b"new\nline.jpg", b"l" * 200 + b"1.jpg", b"l" * 200 + b"2.jpg",
        b"-x.jpg", b"'; rm -rf ~.jpg", b"stylised_a_b.jpg", b"x..jpg.jpg",
    ]  # fmt: skip
    folder = tmp_path / "train" / "n02085620"
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / os.fsdecode(name)).write_bytes(b"%d" % number)
    archive = trees.write_tar(
        tmp_path / "ILSVRC2012_img_train.tar",
        [
            (f"n02085620/{os.fsdecode(name)}", b"%d" % i)
            for i, name in reversed([*enumerate(names)])
        ],
    )
    listing = _one("imagenet9", folder.parent, split="train", selection_fraction=0)
    keys = {item.key for item in listing.items}
    assert len(keys) == len(names)
    assert all(len(key) <= 90 and key.isascii() and "." not in key for key in keys)
    assert all(item.source.isprintable() for item in listing.items)
    "".join(item.source for item in listing.items).encode()  # no surrogates left
    assert "n02085620_a_b" in keys
    same = _one("imagenet9", archive, split="train", selection_fraction=0)
    assert _content(same) == _content(listing)
    # Whatever else is there, a name keeps its key; but for equal ones with another extension.
    by_content = {read_item(item): item.key for item in listing.items}
    for number in (0, 5, 9):
        alone = tmp_path / str(number)
        (alone / "n02085620").mkdir(parents=True)
        (alone / "n02085620" / os.fsdecode(names[number])).write_bytes(b"%d" % number)
        (item,) = _one("imagenet9", alone, split="train", selection_fraction=0).items
        assert item.key == by_content[b"%d" % number]


def test_the_same_image_in_two_sources_keeps_both_in_one_part(tmp_path):
    images = trees.train_images(trees.NINE[:1], 10)
    one = trees.write_folder(tmp_path / "one", images)
    two = trees.write_folder(tmp_path / "two", images)
    train, selection = (
        _one("imagenet9", one, two, selection_fraction=0.3, split=split)
        for split in ("train", "selection")
    )
    assert (len(train.items), len(selection.items)) == (14, 6)
    assert not _bytes(train) & _bytes(selection)
    assert len({item.key for item in train.items}) == 14
    assert {item.source.split("/")[0] for item in train.items} == {"one", "two"}
    swapped = _one("imagenet9", two, one, selection_fraction=0.3, split="train")
    assert swapped.items == train.items


def test_md5_is_recorded_and_compared(forms, tmp_path):
    (source,) = forms["archive"]["val"]
    digest = hashlib.md5(source.read_bytes()).hexdigest()
    listing = _one("imagenet9", source)
    assert listing.facts["archives"] == ["ILSVRC2012_img_val.tar"]
    assert listing.facts["archives_md5"] == [digest]
    # It bears the name of the published one, but is not it.
    assert [(f.path, f.verdict, f.reasons) for f in listing.findings] == [
        ("ILSVRC2012_img_val.tar", "suspect", ("md5-mismatch",))
    ]
    assert any(digest in line and "29b22e29" in line for line in listing.warnings)

    mine = tmp_path / "mine.tar"
    mine.write_bytes(source.read_bytes())
    labels = source.parent / "ILSVRC2012_devkit_t12.tar.gz"
    unknown = _one("imagenet9", mine, labels=labels)
    assert unknown.facts["archives_md5"] == [digest]
    assert not unknown.findings
    quick = _one("imagenet9", source, verify_md5=False)
    assert "archives_md5" not in quick.facts
    assert not quick.findings
    assert quick.items == listing.items


def test_a_file_beside_the_splits_is_told_with_the_first_of_them(tmp_path, monkeypatch):
    """Whatever the order in which the disk gives the folders."""
    trees.write_folder(tmp_path / "train", trees.train_images(each=1))
    trees.write_folder(tmp_path / "val", trees.val_images(each=1))
    os.mkfifo(tmp_path / "pipe.JPEG")
    scandir = os.scandir

    class Entries(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    for backwards in (False, True):

        def ordered(path, backwards=backwards):
            with scandir(path) as entries:
                return Entries(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

        monkeypatch.setattr(os, "scandir", ordered)
        train, val = _list("imagenet9", tmp_path, selection_fraction=0)
        assert [(f.path, f.reasons) for f in train.findings] == [("pipe.JPEG", ("fifo",))]
        assert not val.findings


def test_facts_tell_two_sources_apart_but_not_two_places(forms, tmp_path):
    moved = trees.write_folder(tmp_path / "val", trees.val_images())
    here = _one("imagenet9", *forms["split folder"]["val"])
    assert _one("imagenet9", moved).facts == here.facts
    (moved / "n02085620" / "ILSVRC2012_val_00000001.JPEG").unlink()
    assert _one("imagenet9", moved).facts != here.facts


def test_labels_of_flat_images(forms, tmp_path):
    expected = _expected(trees.val_images(), _NINE)
    images = trees.val_images()
    source = trees.write_val_tar(tmp_path / "in" / "ILSVRC2012_img_val.tar", images)
    with pytest.raises(UsageError, match="give --labels, the devkit"):
        _list("imagenet9", source)
    devkit = trees.write_devkit(tmp_path / "kit" / "ILSVRC2012_devkit_t12.tar.gz", images)
    table = tmp_path / "labels.csv"
    rows = [f"{name},{wnid}" for wnid, files in images.items() for name in files]
    table.write_text("\n".join(["name,wnid", *rows]))
    with tarfile.open(devkit) as tar:
        tar.extractall(tmp_path / "kit", filter="data")
    for labels in (devkit, tmp_path / "kit" / "ILSVRC2012_devkit_t12", table,
                   forms["kaggle"]["train"][0] / "LOC_val_solution.csv"):  # fmt: skip
        assert _content(_one("imagenet9", source, labels=labels)) == expected
    # An image that the labels do not know is told, never guessed.
    table.write_text("\n".join(["name,wnid", *rows[1:]]))
    less = _one("imagenet9", source, labels=table, verify_md5=False)
    assert [(f.path, f.reasons) for f in less.findings] == [
        (f"ILSVRC2012_img_val.tar/{rows[0].split(',')[0]}", ("no-label",))
    ]
    assert len(less.items) == len(expected) - 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a file of labels"),
        (b"a,b\n", "is not a file of labels"),
        (b"name,wnid\nx\n", ":2: no image and wnid"),
        (b"name,wnid\nx,n1\nx,n2\n", ":3: two labels for one image"),
        (b"\xff\xfe\x00", "is not a table of labels"),
        (b'name,wnid\n"x', ":2: no image and wnid"),
    ],
)
def test_a_bad_file_of_labels_is_one_line(tmp_path, content, problem):
    source = trees.write_val_tar(tmp_path / "val.tar", trees.val_images())
    labels = tmp_path / "labels.csv"
    labels.write_bytes(content)
    with pytest.raises(DataShardsError, match=problem) as caught:
        _list("imagenet9", source, labels=labels)
    assert str(caught.value).startswith(str(labels))
    assert "\n" not in str(caught.value)


def test_a_damaged_devkit_is_one_line(tmp_path):
    images = trees.val_images()
    source = trees.write_val_tar(tmp_path / "val.tar", images)
    devkit = trees.write_devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", images)
    whole = devkit.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:100] + b"\0" * 50 + whole[150:], b"x"):
        devkit.write_bytes(damaged)
        with pytest.raises(DataShardsError) as caught:
            _list("imagenet9", source)
        assert str(devkit) in str(caught.value)
        assert "\n" not in str(caught.value)
    trees.write_tar(devkit, [("data/meta.mat", b"MATLAB 5.0 junk" * 99),
                             ("data/ILSVRC2012_validation_ground_truth.txt", b"1\n")])  # fmt: skip
    with pytest.raises(DataShardsError, match=r"meta\.mat cannot be read"):
        _list("imagenet9", source)


def test_unclear_sources_are_refused_with_the_cure(forms, tmp_path):
    train, val = trees.train_images(), trees.val_images()
    folder = trees.write_folder(tmp_path / "images", train)
    with pytest.raises(UsageError, match=r"does not say which split it is .*; give --split"):
        _list("imagenet9", folder)
    trees.write_folder(tmp_path / "both" / "train", train)
    trees.write_train_tar(tmp_path / "both" / "ILSVRC2012_img_train.tar", train)
    with pytest.raises(UsageError, match="holds train images twice, unpacked and in an archive"):
        _list("imagenet9", tmp_path / "both")
    trees.write_folder(tmp_path / "both" / "val", val)
    assert _one("imagenet9", tmp_path / "both", split="val")  # that one is clear
    with pytest.raises(UsageError, match="cannot be read"):
        _list("imagenet9", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no image of imagenet9"):
        _list("imagenet9", tmp_path / "empty")
    only_train = trees.write_folder(tmp_path / "t" / "train", train).parent
    for source in (only_train, *forms["archive"]["train"]):
        with pytest.raises(UsageError, match=r"no image of split val of imagenet9; .* of train"):
            _list("imagenet9", source, split="val")
    cut = tmp_path / "ILSVRC2012_img_train.tar"
    whole = forms["archive"]["train"][0].read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataShardsError, match=r"ILSVRC2012_img_train\.tar.* is truncated"):
        _list("imagenet9", cut)
    os.mkfifo(tmp_path / "fifo.tar")
    with pytest.raises(DataShardsError, match="is no regular file"):
        _list("imagenet9", tmp_path / "fifo.tar")


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("imagenet9", {"split": "test"}, "imagenet9 has train, selection, val"),
        ("imagenet-c", {"split": "val"}, "<corruption>-<severity>"),
        ("imagenet-c", {"split": "../x-1"}, "<corruption>-<severity>"),
        ("imagenet9", {"selection_fraction": 1.0}, "must be from 0 to below 1"),
        ("imagenet9", {"selection_fraction": 0, "split": "selection"}, "would be empty"),
        ("imagenet9", {"selection_fraction": 0.01, "split": "selection"}, "would be empty"),
        ("imagenet9", {"split": "val", "stylised": ["x"]}, "is for the split train, not for val"),
        ("imagenet-a", {"stylised": ["x"]}, "is for the split train, not for imagenet-a"),
    ],
)
def test_options_that_do_not_fit(forms, name, options, problem):
    with pytest.raises(UsageError, match=problem):
        _list(name, *forms["folder"]["train"], **options)


def test_a_data_set_of_ones_own(tmp_path):
    classes = tmp_path / "pets.csv"
    classes.write_text("wnid,class\ntabby,cat\nsiamese,cat\npug,dog\n")
    pets = custom("pets", classes)
    images = {"pug": {"1.jpg": b"p"}, "siamese": {"1.jpg": b"s"}, "parrot": {"1.jpg": b"x"}}
    trees.write_folder(tmp_path / "photos" / "train", images)
    trees.write_folder(tmp_path / "photos" / "odd_ones", {"pug": {"2.jpg": b"o"}})
    with pytest.raises(UsageError, match=r"train images in .* and elsewhere .*odd_ones/pug"):
        listings(pets, [tmp_path / "photos"], "train")
    (train,) = listings(pets, [tmp_path / "photos" / "train"], selection_fraction=0)
    assert [(i.key, i.label) for i in train.items] == [("pug_1", 1), ("siamese_1", 0)]
    assert train.classes == ("cat", "dog")
    assert [(f.path, f.reasons) for f in train.findings] == [("parrot", ("unknown-class",))]
    assert any("1 of 3 class folders have no images: tabby" in line for line in train.warnings)
    (odd,) = listings(pets, [tmp_path / "photos" / "odd_ones"], "odd_ones")
    assert [i.key for i in odd.items] == ["pug_2"]
    for name in ("Pets", "", "../pets", "imagenet9"):
        with pytest.raises(UsageError, match="--name"):
            custom(name, classes)


def test_names_of_data_sets():
    for name in SUMMARIES:
        assert dataset(name).name == name
    with pytest.raises(UsageError, match="there is no data set mnist; there are imagenet1k"):
        dataset("mnist")
