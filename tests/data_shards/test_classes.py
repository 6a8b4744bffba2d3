"""Class maps: the shipped ones, and what a file of one's own may hold."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.classes import load_class_map, shipped_class_map
from data_shards.errors import UsageError
from data_shards.sources.datasets import SUMMARIES, dataset


def test_the_shipped_maps():
    full = shipped_class_map("imagenet1k")
    assert len(full.classes) == len(full.labels) == 1000
    # The usual numbers: tench 0, goldfish 1, great white shark 2, toilet tissue 999.
    assert [full.labels[w] for w in ("n01440764", "n01443537", "n01484850", "n15075141")] == [
        0, 1, 2, 999,
    ]  # fmt: skip
    adversarial = shipped_class_map("imagenet_a")
    assert len(adversarial.classes) == len(adversarial.labels) == 200
    assert adversarial.labels.keys() < full.labels.keys()
    nine = shipped_class_map("imagenet9")
    assert nine.classes == (
        "dog", "cat", "frog", "turtle", "bird", "monkey", "fish", "crab", "insect",
    )  # fmt: skip
    assert len(nine.labels) == 42
    assert nine.labels.keys() < full.labels.keys()
    assert [list(nine.labels.values()).count(label) for label in range(9)] == [
        5, 5, 3, 5, 5, 5, 5, 4, 5,
    ]  # fmt: skip
    for map_ in (full, adversarial):
        assert list(map_.labels) == list(map_.classes) == sorted(map_.classes)


def test_data_sets_that_are_evaluated_together_have_the_same_classes():
    for family in ("imagenet9", "imagenet9-a", "imagenet9-c"):
        assert dataset(family).class_map.classes == dataset("imagenet9").class_map.classes
    assert dataset("imagenet-c").class_map == dataset("imagenet1k").class_map
    # ImageNet-A has 21 of the 42 synsets, and no crab.
    there = set(dataset("imagenet9-a").class_map.labels) - dataset("imagenet9-a").absent
    assert len(there) == 21
    assert 7 not in {shipped_class_map("imagenet9").labels[wnid] for wnid in there}
    assert all(len(dataset(name).summary) < 80 for name in SUMMARIES)


def _load(tmp_path, content):
    path = tmp_path / "classes.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_class_map(path)


@pytest.mark.parametrize(
    ("content", "classes", "labels"),
    [
        ("wnid\nb\na\n", ("b", "a"), {"b": 0, "a": 1}),
        ("wnid,class\nx,dog\ny,cat\nz,dog\n", ("dog", "cat"), {"x": 0, "y": 1, "z": 0}),
        ("label,wnid,class\n1,x,dog\n0,y,cat", ("cat", "dog"), {"x": 1, "y": 0}),
        ('\ufeff# by me\r\n\r\nwnid,class\r\n"a","b, c"\r\n', ("b, c",), {"a": 0}),
        ('wnid,class\n"#x",c\n# y,d\n#todo\n#\n## z,a\nb,d\n', ("c", "d"), {"#x": 0, "b": 1}),
        ('#old\nwnid\n"#x"\n# y\n', ("#x",), {"#x": 0}),
    ],
)
def test_files(tmp_path, content, classes, labels):
    loaded = _load(tmp_path, content)
    assert loaded.classes == classes
    assert loaded.labels == labels


@given(st.dictionaries(st.text("abcn0123", min_size=1), st.integers(0, 4), min_size=1))
def test_labels_name_their_classes(tmp_path_factory, wnids):
    numbers = {old: new for new, old in enumerate(sorted(set(wnids.values())))}
    lines = [f"{wnid},c{numbers[n]},{numbers[n]}" for wnid, n in wnids.items()]
    path = tmp_path_factory.mktemp("c")
    loaded = _load(path, "\n".join(["wnid,class,label", *lines]))
    assert {w: loaded.classes[n] for w, n in loaded.labels.items()} == {
        wnid: f"c{numbers[n]}" for wnid, n in wnids.items()
    }
    without = _load(path, "\n".join(["wnid,class", *(line.rpartition(",")[0] for line in lines)]))
    assert {w: without.classes[n] for w, n in without.labels.items()} == {
        w: loaded.classes[n] for w, n in loaded.labels.items()
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no class"),
        ("# nothing\nwnid,class\n", "holds no class"),
        ("name,class\na,b\n", ":1: the columns must be wnid and"),
        ("wnid,wnid\na,b\n", ":1: the columns must be wnid and"),
        ("wnid,class,extra\na,b,c\n", ":1: the columns must be wnid and"),
        ("wnid,class\na\n", ":2: has 1 columns, but the header has 2"),
        ("wnid\na\nb\na\n", ":4: the wnid 'a' occurs twice"),
        ("wnid\n../a\n", ":2: the wnid '../a' is not a folder name"),
        ("wnid\n..\n", ":2: the wnid '..' is not a folder name"),
        ("wnid,class\n,b\n", ":2: the wnid '' is not a folder name"),
        ("wnid,class\na,b\x07\n", ":2: the class 'b.x07' is not printable"),
        ("wnid,class,label\na,b,x\n", ":2: the label 'x' is not a whole number"),
        ("wnid,class,label\na,b,-1\n", ":2: the label '-1' is not a whole number"),
        ("wnid,class,label\na,b,0\nc,b,1\n", ":3: the class 'b' has the labels 0 and 1"),
        ("wnid,class,label\na,b,0\nc,d,0\n", "the classes 'b' and 'd' have the same label 0"),
        ("wnid,class,label\na,b,0\nc,d,2\n", "0 to 1, but no class has the label 1"),
        ('wnid\n"a\n', ":2: is not CSV"),
        ("wnid,class\n#x,cat\n", ":2: '#x' may be a comment or a folder; .* quotes"),
        ("wnid\na\n#x\n", ":3: '#x' may be a comment or a folder; .* blank"),
        (b"wnid\n\xff\n", r"is not UTF-8 text \(byte 5\)"),
        (b"#" * (9 << 20), "is larger than a class map can be"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, content, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        _load(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "classes.csv"))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_class_map(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        load_class_map(tmp_path)
    os.mkfifo(tmp_path / "fifo.csv")
    with pytest.raises(UsageError, match="no regular file"):
        load_class_map(tmp_path / "fifo.csv")
