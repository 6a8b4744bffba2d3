"""--quarantine copies every regular file that was left out, whenever it was left out."""

import io
import os

import pytest
from PIL import Image

from data_shards.__main__ import cli
from data_shards.images.examine import MOST_BYTES
from tests.data_shards import trees
from tests.data_shards.sources import birds
from tests.data_shards.tiny import tree


def _encoded(form):
    stream = io.BytesIO()
    Image.new("I;16" if form == "TIFF" else "RGB", (16, 16)).save(stream, form)
    return stream.getvalue()


OTHERS = {name: _encoded(name.upper()) for name in ("gif", "webp", "bmp", "tiff")}
CUT = trees.jpeg(1)[:-40]


@pytest.fixture
def photos(tmp_path):
    """Images of two classes with two cut ones, files of other formats, and a link."""
    images = {
        wnid: {f"{n}.jpg": trees.jpeg(10 * c + n) for n in range(6)}
        for c, wnid in enumerate(("pug", "tabby"))
    }
    images["pug"]["1.jpg"] = CUT
    images["tabby"]["4.jpg"] = CUT
    images["pug"] |= {f"odd.{ending}": content for ending, content in OTHERS.items()}
    images["tabby"]["5.jpg.part"] = b"half"
    images["kittens"] = {"7.jpg": trees.jpeg(77)}
    trees.write_folder(tmp_path / "photos" / "train", images)
    (tmp_path / "photos" / "train" / "pug" / "link.jpg").symlink_to("/nowhere.jpg")
    (tmp_path / "pets.csv").write_text("wnid\npug\ntabby\n")
    return tmp_path / "photos"


def _convert(root, source, output, *more):
    command = ["convert", "folder", "--name", "pets", "--classes", str(root / "pets.csv")]
    command += ["--source", str(source), "--output", str(output), "--selection-fraction", "0"]
    return cli([*command, "--samples-per-shard", "4", "--workers", "1", *more])


def _contents(folder):
    return sorted(tree(folder).values())


LEFT_OUT = sorted([CUT, CUT, *OTHERS.values(), b"half", trees.jpeg(77)])


def test_a_fresh_run_copies_what_was_refused_by_name_too(tmp_path, photos):
    bad = tmp_path / "bad"
    assert _convert(tmp_path, photos, tmp_path / "out", "--quarantine", str(bad)) == 1
    copies = tree(bad)
    assert _contents(bad) == LEFT_OUT
    assert {name: copies[name] for name in ("train/pug_1.jpg", "train/tabby_4.jpg")} == {
        "train/pug_1.jpg": CUT,
        "train/tabby_4.jpg": CUT,
    }
    # Every name is that of its file, though four of them have one stem.
    assert {content: name.rpartition(".")[2] for name, content in copies.items()} == {
        CUT: "jpg", b"half": "bin", trees.jpeg(77): "jpg",
        **{content: ending for ending, content in OTHERS.items()},
    }  # fmt: skip


@pytest.mark.parametrize("limit", [6, 7, 8])
def test_a_second_look_copies_what_the_first_run_left_out(tmp_path, photos, capsys, limit):
    """Seven files are refused before any is read. Two more are found in different shards."""
    out, bad = tmp_path / "out", tmp_path / "bad"
    assert _convert(tmp_path, photos, out, "--max-corrupt", str(limit)) == 1
    assert f"images are left out, more than --max-corrupt {limit}" in capsys.readouterr().err
    assert not (out / "train").exists()
    more = ["--max-corrupt", "100", "--quarantine", str(bad)]
    assert _convert(tmp_path, photos, out, *more) == 0
    assert _contents(bad) == LEFT_OUT


def test_what_was_left_out_before_the_limit_is_copied_if_nothing_is_published(tmp_path, photos):
    out, bad = tmp_path / "out", tmp_path / "bad"
    more = ["--max-corrupt", "8", "--quarantine", str(bad)]
    for _ in range(2):
        assert _convert(tmp_path, photos, out, *more) == 1
        assert _contents(bad) == LEFT_OUT


def test_a_split_that_is_published_has_its_copies_too(tmp_path, photos, capsys):
    out = tmp_path / "out"
    assert _convert(tmp_path, photos, out) == 1
    before = tree(out)
    for name in ("bad", "again"):
        assert _convert(tmp_path, photos, out, "--quarantine", str(tmp_path / name)) == 1
        assert _contents(tmp_path / name) == LEFT_OUT
    assert "present" in capsys.readouterr().out
    assert tree(out) == before


def test_a_split_of_which_nothing_is_left_has_copies(tmp_path, photos):
    webp = {wnid: {"1.webp": OTHERS["webp"], "2.gif": OTHERS["gif"]} for wnid in ("pug", "tabby")}
    trees.write_folder(photos / "val", webp)
    bad = tmp_path / "bad"
    assert _convert(tmp_path, photos, tmp_path / "out", "--quarantine", str(bad)) == 1
    assert _contents(bad / "val") == sorted([OTHERS["webp"], OTHERS["gif"]] * 2)


def test_files_in_an_archive_are_copied(tmp_path, photos):
    (photos / "train" / "pug" / "link.jpg").unlink()
    files = [
        (str(path.relative_to(photos)), path.read_bytes())
        for path in sorted((photos / "train").glob("*/*"))
    ]
    archive, bad = trees.write_tar(tmp_path / "pets.tar", files), tmp_path / "bad"
    assert _convert(tmp_path, archive, tmp_path / "out", "--quarantine", str(bad)) == 1
    assert _contents(bad) == LEFT_OUT


def test_parts_copy_their_own_and_a_dry_run_nothing(tmp_path, photos):
    bad = tmp_path / "bad"
    assert _convert(tmp_path, photos, tmp_path / "o", "--dry-run", "--quarantine", str(bad)) == 0
    assert not bad.exists()
    for part in ("2/2", "1/2"):
        more = ["--part", part, "--quarantine", str(bad)]
        assert _convert(tmp_path, photos, tmp_path / "out", *more) == 0
    assert _contents(bad) == LEFT_OUT


def test_an_image_that_is_too_large_to_be_read_is_copied(tmp_path, photos):
    (photos / "train" / "pug" / "0.jpg").write_bytes(b"")
    os.truncate(photos / "train" / "pug" / "0.jpg", MOST_BYTES + 1)
    bad = tmp_path / "bad"
    assert _convert(tmp_path, photos, tmp_path / "out", "--quarantine", str(bad)) == 1
    assert (bad / "train" / "pug_0.jpg").stat().st_size == MOST_BYTES + 1


def test_images_of_a_table_are_copied(tmp_path):
    rows = [("a.jpg", "cat"), ("b.jpg", "dog"), ("c.gif", "cat"), ("d.jpg", "dog")]
    for number, (name, _) in enumerate(rows):
        (tmp_path / name).write_bytes(trees.jpeg(number))
    (tmp_path / "c.gif").write_bytes(OTHERS["gif"])
    (tmp_path / "d.jpg").write_bytes(CUT)
    table = birds.write_table(tmp_path / "t.csv", [("path", "label"), *rows])
    command = ["convert", "table", str(table), "--output", str(tmp_path / "out"), "--workers", "1"]
    for name in ("fresh", "present"):
        assert cli([*command, "--quarantine", str(tmp_path / name)]) == 1
        assert tree(tmp_path / name) == {"train/c.gif": OTHERS["gif"], "train/d.jpg": CUT}
