"""clusters.csv: writing, reading, importing a published list."""

import dataclasses
import json
import shutil
from pathlib import PurePosixPath

import numpy as np
import pytest

from data_shards.__main__ import cli
from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import load_split
from data_shards.format.samples import walk_facts
from data_shards.images.clusters import Published, import_published, read_clusters, write_clusters
from tests.data_shards.converted import converted, listing
from tests.data_shards.small_split import noise, write_split

HEADER = "path,category,cluster1,cluster2,cluster3\n"
CLASSES = ["frog", "fish"]


def _split(folder, sources, labels=None):
    labels = labels or [n % 2 for n in range(len(sources))]
    samples = [
        (s, label, noise(n)) for n, (s, label) in enumerate(zip(sources, labels, strict=True))
    ]
    return write_split(folder, "val", CLASSES, samples)


def test_published_clusters_are_joined_by_name_whatever_the_order(tmp_path, capsys):
    sources = [f"val/n0164157{n % 2}/ILSVRC2012_val_{n:08d}.JPEG" for n in range(20)]
    split = _split(tmp_path, sources)
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 9, (20, 3))
    lines = [
        f"n0164157{n % 2}/ILSVRC2012_val_{n:08d}.JPEG,{CLASSES[n % 2]},{a},{b},{c}\n"
        for n, (a, b, c) in enumerate(clusters)
    ]
    published = tmp_path / "published.csv"
    # Backwards; three rows are missing, two have no image in the shards.
    lines = [*lines[:2], *lines[5:]][::-1]
    lines.insert(4, "n01641570/ILSVRC2012_val_00049999.JPEG,frog,1,2,3\n")
    lines.append("n01641570/another.JPEG,frog,1,2,3\n")
    published.write_text(HEADER + "".join(lines))
    command = ["cluster", str(split), "--import", str(published)]
    assert cli([*command, "--json", "--sheets", str(tmp_path / "sheets")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["matched"], report["missing_in_shards"], report["missing_in_list"]) == (17, 2, 3)
    _, index = load_split(split)
    found = read_clusters(split, index)
    expected = clusters.T.copy()
    expected[:, 2:5] = -1
    assert np.array_equal(found, expected)
    assert (split / "clusters.csv").read_text().splitlines()[0] == "key,cluster1,cluster2,cluster3"
    assert (tmp_path / "sheets" / f"cluster1-{clusters[0, 0]}.png").is_file()

    # The same again is fine, another list is refused.
    assert cli(command) == 0
    published.write_text(HEADER + "".join(lines[:9]))
    assert cli(command) == 2
    assert np.array_equal(read_clusters(split, index), expected)


@pytest.mark.parametrize(
    ("sources", "path", "matched"),
    [
        (["val.tar/img_1.JPEG"], "n01641577/img_1.JPEG", "k0"),  # a flat archive has no classes
        (["img_1.JPEG"], "n01641577/img_1.JPEG", "k0"),
        (["n01641577/1.jpg", "n02110341/1.jpg"], "n02110341/1.jpg", "k1"),
        (["n01641577/1.jpg"], "n02110341/1.jpg", None),  # another image of that name
        (["n01641577/1.jpg"], "1.jpg", "k0"),
        (["n01641577/1.jpg"], "2.jpg", None),
        (["n01641577/1.jpg"], "N01641577/1.JPG", None),
    ],
)
def test_which_image_a_path_means(tmp_path, sources, path, matched):
    split = _split(tmp_path, sources)
    row = Published(PurePosixPath(path), "other", (1,))
    join = import_published(split, *load_split(split), [row])
    assert dict(join.clusters) == ({matched: (1,)} if matched else {})
    assert list(join.rows_left) == ([] if matched else [path])


@pytest.fixture(scope="module")
def by_camera(tmp_path_factory):
    """Images whose class (n00000000 …) is not the folder that they lie in."""
    root = tmp_path_factory.mktemp("by camera")
    given = listing(root / "source", 6)
    names = ["x/1.jpg", "y/1.jpg", "x/2.jpg", "n00000001/1.jpg", "t.tar/3.jpg", "x/deep/4.jpg"]
    items = tuple(
        dataclasses.replace(item, source=name)
        for item, name in zip(given.items, names, strict=True)
    )
    converted(dataclasses.replace(given, items=items), root / "out")
    return root / "out" / "train"


@pytest.mark.parametrize(
    ("path", "matched"),
    [
        ("x/1.jpg", "k0"),
        ("y/1.jpg", "k1"),
        ("somewhere/x/2.jpg", "k2"),
        ("2.jpg", "k2"),
        ("n00000002/2.jpg", "k2"),  # its class
        ("n00000000/2.jpg", None),  # another image of that name
        ("n00000001/1.jpg", "k3"),  # its own path, though that is also the class of y/1.jpg
        ("t.tar/3.jpg", "k4"),
        ("x/deep/4.jpg", "k5"),
        ("x/4.jpg", None),
    ],
)
def test_a_samples_own_path_is_found_whatever_its_class(by_camera, path, matched):
    row = Published(PurePosixPath(path), "other", (1,))
    join = import_published(by_camera, *load_split(by_camera), [row])
    assert dict(join.clusters) == ({matched: (1,)} if matched else {})


def test_the_sources_in_the_shards_can_be_imported_as_they_are(by_camera, tmp_path, capsys):
    split = shutil.copytree(by_camera, tmp_path / "train")
    sources = [facts.source for facts in walk_facts(split, *load_split(split))]
    published = tmp_path / "mine.csv"
    published.write_text(HEADER + "".join(f"{source},other,1,2,3\n" for source in sources))
    assert cli(["cluster", str(split), "--import", str(published)]) == 0
    assert "6 images matched; 0 rows without an image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sources", "paths", "words"),
    [
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"], "1.jpg: ambiguous: may be a/1.jpg or b/1.jpg"),
        (["x/a/1.jpg", "y/a/1.jpg"], ["a/1.jpg"], "ambiguous"),
        (["x.tar/1.jpg"], ["a/1.jpg", "b/1.jpg"], "b/1.jpg: ambiguous: two rows"),
    ],
)
def test_ambiguous_names_are_refused(tmp_path, sources, paths, words):
    split = _split(tmp_path, sources)
    rows = [Published(PurePosixPath(path), "other", (1,)) for path in paths]
    with pytest.raises(DataShardsError, match=words):
        import_published(split, *load_split(split), rows)


def test_a_category_of_another_class_is_refused(tmp_path, capsys):
    split = _split(tmp_path, ["a/1.jpg", "b/2.jpg"])
    published = tmp_path / "list.csv"
    published.write_text(HEADER + "1.jpg,fish,1,2,3\n")
    assert cli(["cluster", str(split), "--import", str(published)]) == 1
    assert "category fish" in capsys.readouterr().err
    assert not (split / "clusters.csv").exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, 2), ("", 1), (HEADER, 2), ("path,category\n1.jpg,frog\n", 1),
        ("path,category,cluster1\n1.jpg,frog\n", 1), (HEADER + "1.jpg,frog,1,2,-3\n", 1),
        (HEADER + "1.jpg,frog,1,2,9999999\n", 1), (HEADER + "\n", 1), (HEADER + ",frog,1,2,3\n", 1),
        (HEADER + "nowhere.jpg,frog,1,2,3\n", 2), ("\xff", 1), (HEADER + '"' + "x" * 200_000, 1),
    ],
)  # fmt: skip
def test_malformed_lists_are_one_line(tmp_path, capsys, text, code):
    split = _split(tmp_path, ["a/1.jpg"])
    if text is not None:
        (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    assert cli(["cluster", str(split), "--import", str(tmp_path / "list.csv")]) == code
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "list.csv" in shown
    assert not (split / "clusters.csv").exists()


def test_what_is_written_is_read(tmp_path):
    split = _split(tmp_path, [f"{n}.jpg" for n in range(12)])
    _, index = load_split(split)
    clusters = {f"k{n}": (n % 4, n // 4) for n in range(12) if n != 5}
    write_clusters(split, clusters)
    found = read_clusters(split, index)
    assert found.shape == (2, 12)
    assert [tuple(column) for column in found.T.tolist()] == [
        clusters.get(f"k{n}", (-1, -1)) for n in range(12)
    ]
    write_clusters(split, clusters)
    with pytest.raises(UsageError, match="there already"):
        write_clusters(split, {**clusters, "k5": (0, 0)})


@pytest.mark.parametrize(
    "text",
    [
        "", "key\n", "key,cluster2\nk0,1\n", "key,cluster1\nk0\n", "key,cluster1\nk0,1,2\n",
        "key,cluster1\nk0,1\nk0,1\n", "key,cluster1\nk9,1\n", "key,cluster1\nk0,x\n",
        "key,cluster1\n\nk0,1\n",
    ],
)  # fmt: skip
def test_a_malformed_file_is_never_read(tmp_path, text):
    split = _split(tmp_path, ["a/1.jpg"])
    (split / "clusters.csv").write_text(text)
    with pytest.raises(DataShardsError, match=r"clusters\.csv"):
        read_clusters(split, load_split(split)[1])
