"""--reencode: images of other formats are stored as PNG; without it they are refused."""

import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

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


def test_a_tiff_without_a_known_black_and_white_is_refused(source, capsys):
    cat = source / "in" / "train" / "cat"
    for path in cat.iterdir():
        path.unlink()
    ramp = np.linspace(0, 1, 600).reshape(20, 30)
    for name, values in {
        "i32": (ramp * 65535).astype(np.int32),
        "f01": ramp.astype(np.float32),
        "i16": (ramp * 65535).astype(np.uint16),
    }.items():
        Image.fromarray(values).save(cat / f"{name}.tif")
    assert cli(command(source, "out", "--reencode")) == 1
    shown = capsys.readouterr().out
    assert "cat/f01.tif: unsupported-tiff" in shown
    assert "cat/i32.tif: unsupported-tiff" in shown
    assert "--reencode takes" not in shown
    folder = source / "out" / "train"
    manifest, (row,) = load_split(folder)
    with Image.open(io.BytesIO(read_image(folder, manifest, row))) as png:
        assert (np.asarray(png.convert("L")) == (ramp * 65535).astype(np.uint16) >> 8).all()


GREY = np.asarray(noise(5, (30, 20)).convert("L"))
RGB = np.asarray(noise(5, (30, 20)))
DEEP_GREY, DEEP_RGB = (pixels.astype(np.uint16) * 257 for pixels in (GREY, RGB))
OPAQUE = np.full_like(GREY, 255)
CMYK, YCBCR = (noise(5, (30, 20)).convert(mode) for mode in ("CMYK", "YCbCr"))


def tiff(pixels, photometric, *, order="<", planes=False, packed=False, **tags):
    """A TIFF of pixels [height, width] or [height, width, channels]; ``tags`` are its others."""
    height, width = pixels.shape[:2]
    pixels = pixels.reshape(height, width, -1).astype(pixels.dtype.newbyteorder(order))
    channels = pixels.shape[-1]
    parts = np.moveaxis(pixels, -1, 0) if planes else [pixels]
    strips = [zlib.compress(part.tobytes()) if packed else part.tobytes() for part in parts]
    bits = tags.get("bits", 8 * pixels.itemsize)
    entries = {  # SHORT each
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [8 if packed else 1],
        262: [photometric],
        273: [],  # where the strips begin
        277: [channels],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planes else 1],
        **({338: [tags["extra"]]} if "extra" in tags else {}),
        339: [tags.get("kind", 1)] * channels,
        **({530: tags["sampling"]} if "sampling" in tags else {}),
    }
    place = 8 + 2 + 12 * len(entries) + 4
    for strip in strips:
        entries[273].append(place)
        place += len(strip)
    table, behind = struct.pack(f"{order}H", len(entries)), b"".join(strips)
    for tag, values in entries.items():
        value = struct.pack(f"{order}{len(values)}H", *values)
        if len(value) > 4:
            behind, value = behind + value, struct.pack(f"{order}I", place)
            place += 2 * len(values)
        table += struct.pack(f"{order}HHI", tag, 3, len(values)) + value.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}I", 8) + table + bytes(4) + behind


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("pixels", "photometric", "tags", "expected"),
    [
        (GREY, 1, {}, GREY),
        (255 - GREY, 0, {}, GREY),
        (DEEP_GREY, 1, {}, GREY),
        (np.dstack([GREY, OPAQUE]), 1, {"extra": 2}, GREY),
        (RGB, 2, {}, RGB),
        (RGB, 2, {"planes": True}, RGB),
        (DEEP_RGB, 2, {}, RGB),
        (np.dstack([RGB, OPAQUE]), 2, {"extra": 1}, RGB),
        (np.dstack([RGB, OPAQUE]), 2, {"extra": 2}, RGB),
        (CMYK, 5, {}, CMYK.convert("RGB")),
        (YCBCR, 6, {"sampling": [1, 1]}, YCBCR.convert("RGB")),
    ],
)
def test_tiffs_of_known_range_keep_their_pixels(order, packed, pixels, photometric, tags, expected):
    content = tiff(np.asarray(pixels), photometric, order=order, packed=packed, **tags)
    found, expected = stored(content).astype(int), np.asarray(expected)
    difference = found - (expected[..., None] if expected.ndim == 2 else expected)
    # libtiff and Pillow round YCbCr differently.
    assert abs(difference).max() <= (3 if pixels is YCBCR else 0)


def stored(content):
    with Image.open(io.BytesIO(as_png(content))) as png:
        return np.asarray(png)


def test_palettes_with_alpha_and_lab_keep_their_pixels():
    image = Image.fromarray(RGB)
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    palette = image.convert("RGBA").convert("PA")
    for kept, expected, error in ((palette, palette.convert("RGB"), 0), (lab, image, 2)):
        stream = io.BytesIO()
        kept.save(stream, "TIFF")
        difference = stored(stream.getvalue()).astype(int) - np.asarray(expected)
        assert abs(difference).mean() <= error, kept.mode


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("pixels", "photometric", "tags"),
    [
        (GREY.astype(np.int8), 1, {"kind": 2}),
        (DEEP_GREY.astype(np.int16), 1, {"kind": 2}),
        (DEEP_GREY.astype(np.int32), 1, {"kind": 2}),
        ((GREY / 255).astype(np.float32), 0, {"kind": 3}),
        ((GREY / 255).astype(np.float32), 1, {"kind": 3, "packed": True}),
        (np.dstack([GREY, OPAQUE]), 1, {"extra": 1}),
        (DEEP_RGB, 2, {"planes": True}),
        (RGB, 8, {"planes": True}),
        (RGB, 6, {}),
        (RGB, 6, {"sampling": [2, 2]}),
    ],
)
def test_tiffs_that_would_change_their_pixels_are_refused(order, pixels, photometric, tags):
    with pytest.raises(UnfitError, match="refused: unsupported-tiff"):
        as_png(tiff(pixels, photometric, order=order, **tags))


@pytest.mark.parametrize(
    ("pixels", "photometric", "tags"),
    [
        (GREY.astype(np.uint32), 1, {}),
        (DEEP_GREY, 1, {"bits": 12}),
        (DEEP_GREY, 0, {}),
        (DEEP_GREY, 0, {"packed": True}),
    ],
)
def test_tiffs_that_pillow_reads_in_one_byte_order_alone_never_become_a_png(
    pixels, photometric, tags
):
    with pytest.raises(UnfitError, match="refused: unsupported-tiff"):
        as_png(tiff(pixels, photometric, **tags))
    with pytest.raises(UnfitError):
        as_png(tiff(pixels, photometric, order=">", **tags))
