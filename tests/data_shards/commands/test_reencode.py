"""--reencode: images of other formats are stored as PNG; without it they are refused."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_shards.__main__ import cli
from data_shards.format.manifest import load_split
from data_shards.format.samples import read_image, walk_facts
from data_shards.images.examine import examine
from data_shards.images.reencode import as_png
from data_shards.images.unfit import UnfitError
from tests.data_shards.small_split import noise
from tests.data_shards.trees import jpeg

FORMATS = {"webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "gif": "GIF"}


def encoded(kind: str, seed: int) -> bytes:
    """An image; a GIF has a second frame, a WebP is lossless and has an alpha channel."""
    stream = io.BytesIO()
    image = noise(seed, (30, 20))
    more = {"save_all": True, "append_images": [noise(99, (30, 20))]} if kind == "GIF" else {}
    if kind == "WEBP":
        image.putalpha(Image.new("L", image.size, 100))
        more = {"lossless": True, "exact": True}
    image.save(stream, kind, **more)
    return stream.getvalue()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in" / "train" / "cat"
    folder.mkdir(parents=True)
    for seed, (ending, kind) in enumerate(FORMATS.items()):
        (folder / f"{seed}.{ending}").write_bytes(encoded(kind, seed))
    (folder / "7.jpg").write_bytes(jpeg(7))
    (folder / "8.jpg").write_bytes(encoded("GIF", 8))  # another name
    (tmp_path / "classes.csv").write_text("wnid\ncat\n")
    return tmp_path


def command(root, output, *more):
    words = ["convert", "folder", "--name", "pets", "--classes", str(root / "classes.csv")]
    words += ["--source", str(root / "in"), "--selection-fraction", "0", "--workers", "1"]
    return [*words, "--output", str(root / output), *more]


def test_without_the_flag_they_are_refused_with_its_name(source, capsys):
    assert cli(command(source, "out")) == 1
    shown = capsys.readouterr().out
    assert "written, 1 images" in shown
    assert "left out: 6" in shown
    assert "cat/0.webp: extension" in shown
    assert "cat/8.jpg: unsupported-format" in shown
    assert "--reencode takes WebP, BMP, TIFF and GIF" in shown
    (source / "in/train/cat/7.jpg").unlink()
    (source / "in/train/cat/8.jpg").unlink()
    assert cli(command(source, "none")) == 2
    assert "--reencode takes WebP" in capsys.readouterr().err


def test_the_first_frame_is_stored_as_png_and_the_rest_as_it_was(source, capsys):
    assert cli(command(source, "out", "--reencode")) == 0
    folder = source / "out" / "train"
    manifest, index = load_split(folder)
    assert manifest.options["reencode"] is True
    assert "Pillow" in manifest.options["png_encoder"]
    found = {facts.source: facts for facts in walk_facts(folder, manifest, index)}
    assert len(found) == len(index) == 7
    keys = {row["key"].decode(): row for row in index}
    for path, facts in found.items():
        original = (source / "in" / path).read_bytes()
        stored = read_image(folder, manifest, keys[facts.key])
        if path.endswith("7.jpg"):
            assert (stored, facts.flags) == (original, ())
            continue
        assert (facts.extension, facts.size) == ("png", (30, 20))
        assert facts.flags == ("reencoded",)
        with Image.open(io.BytesIO(original)) as image, Image.open(io.BytesIO(stored)) as png:
            assert (png.format, png.mode) == ("PNG", "RGB")
            assert (np.asarray(png) == np.asarray(image.convert("RGB"))).all()
        assert hashlib.sha256(original).hexdigest() in shard_text(folder, manifest)
    assert cli(["verify", str(folder), "--workers", "1"]) == 0
    capsys.readouterr()
    assert cli(command(source, "out")) == 2  # without the flag it is another data set
    assert "holds a different data set" in capsys.readouterr().err


def shard_text(folder, manifest):
    return (folder / manifest.shards[0].name).read_bytes().decode(errors="replace")


def test_damaged_and_unknown_formats_stay_out(source, capsys):
    cat = source / "in" / "train" / "cat"
    whole = (cat / "0.webp").read_bytes()
    (cat / "0.webp").write_bytes(whole[: len(whole) // 2])
    (cat / "2.tif").write_bytes((cat / "2.tif").read_bytes()[:100])
    (cat / "3.TIFF").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))
    assert cli(command(source, "out", "--reencode", "--json")) == 1
    *findings, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert {f["path"].rpartition("/")[2]: (f["verdict"], *f["reasons"]) for f in findings} == {
        "0.webp": ("corrupt", "damaged-data"),
        "2.tif": ("corrupt", "damaged-header"),
        "3.TIFF": ("refused", "unsupported-format"),
    }
    assert summary["samples"] == 4


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "GIF"])
def test_mutants_become_a_png_or_are_unfit(kind):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encoded(kind, 1), np.uint8)
    unfit = 0
    for number in range(60):
        mutant = whole.copy()
        mutant[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
        cut = rng.integers(0, len(whole)) if number % 3 == 0 else len(whole)
        try:
            png = as_png(mutant[:cut].tobytes())
        except UnfitError:
            unfit += 1
            continue
        assert examine(png, "a.png").verdict != "corrupt"
    assert 10 < unfit < 60


def test_resized_images_are_stored_as_jpeg(source):
    assert cli(command(source, "out", "--reencode", "--resize", "10")) == 0
    folder = source / "out" / "train"
    manifest, index = load_split(folder)
    found = list(walk_facts(folder, manifest, index))
    assert {facts.extension for facts in found} == {"jpg"}
    assert {min(facts.size) for facts in found} == {10}
    assert sum("reencoded" in facts.flags for facts in found) == 6
