import hashlib
import io
import itertools
import os
import random
import stat
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_shards.convert.workers import Crash, map_surviving
from data_shards.images import jpeg, png
from data_shards.images.examine import (
    MOST_BYTES,
    MOST_PIXELS,
    Examination,
    examine,
    examine_item,
    full_pixels,
)
from data_shards.sources.listing import Item
from tests.data_shards.images.zoo import chunk, peak_memory, photographs, whole, zoo
from tests.data_shards.images.zoo import png as build_png

MB = 2**20


@pytest.mark.parametrize("exhibit", zoo(), ids=lambda exhibit: exhibit.name)
def test_zoo(exhibit):
    found = examine(exhibit.content, exhibit.name)
    said = (found.verdict, found.reasons, found.flags)
    assert said == (exhibit.verdict, exhibit.reasons, exhibit.flags)
    assert found.sha256 == hashlib.sha256(exhibit.content).hexdigest()
    kept = found.verdict in ("ok", "suspect")
    assert bool(found.pixels) == kept
    if kept:
        with Image.open(io.BytesIO(exhibit.content)) as image:
            assert found.size == image.size
            assert found.extension == {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}[image.format]


def _pixels(content):
    """All pixels by a decoder that ignores warnings."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_harmless_oddity_leaves_the_pixels_alone():
    odd = [e for e in zoo() if e.verdict == "suspect" and e.content.startswith(b"\xff\xd8")]
    assert len(odd) > 12
    for exhibit in odd:
        plain, _ = jpeg.without_oddities(exhibit.content, jpeg.parse(exhibit.content))
        np.testing.assert_array_equal(_pixels(plain), _pixels(exhibit.content))
        jpeg.decode(plain)


@pytest.mark.parametrize("name", ["baseline.jpg", "progressive.jpg", "restarts.jpg"])
def test_any_one_missing_byte_of_the_coded_data_is_seen_or_harmless(name):
    """A cut with an end marker behind it is damage, wherever it is, by scans as well."""
    content = whole()[name]
    scan = next(s for s in jpeg.parse(content) if s.marker == 0xDA)
    draw = random.Random(1)
    for _ in range(60):
        cut = content[: draw.randrange(scan.coded, len(content) - 40)] + b"\xff\xd9"
        assert examine(cut, name).verdict == "corrupt"


def test_every_flipped_bit_of_a_png_is_damage_or_changes_no_pixel():
    content = whole()["bits.png"]
    before = _pixels(content)
    draw = random.Random(2)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        if examine(bytes(flipped), "a.png").verdict in ("ok", "suspect"):
            np.testing.assert_array_equal(_pixels(bytes(flipped)), before)


def test_the_hash_of_pixels_does_not_see_how_they_are_stored():
    photo = Image.open(io.BytesIO(photographs()[3]))
    variants = []
    for options in ({}, {"optimize": True}, {"progressive": True}, {"comment": "no pixel"}):
        stream = io.BytesIO()
        photo.save(stream, "JPEG", qtables=photo.quantization, subsampling=2, **options)
        variants.append(stream.getvalue())
    assert len(set(variants)) == len(variants)
    assert len({examine(variant, "").pixels for variant in variants}) == 1
    assert len({full_pixels(variant) for variant in variants}) == 1
    others = {examine(other, "").pixels for other in whole().values()}
    assert len(others) == len(whole())
    assert examine(variants[0], "").pixels not in others


def test_the_hash_of_a_png_does_not_see_its_compression():
    image = Image.open(io.BytesIO(whole()["colour.png"]))
    packed = []
    for level in (1, 9):
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=level)
        packed.append(examine(stream.getvalue(), "a.png"))
    assert packed[0].sha256 != packed[1].sha256
    assert packed[0].pixels == packed[1].pixels


def test_the_hash_of_a_png_sees_its_palette():
    image = Image.open(io.BytesIO(whole()["colour.png"])).quantize(16)
    palette = image.getpalette()
    hashes = set()
    for colours in (palette, palette[::-1]):
        image.putpalette(colours)
        stream = io.BytesIO()
        image.save(stream, "PNG")
        hashes |= {examine(stream.getvalue(), "a.png").pixels, full_pixels(stream.getvalue())}
    assert len(hashes) == 2


def scan_of(data: bytes) -> tuple[bytes, list[jpeg.Segment]]:
    """Return a file whose only scan holds ``data``, and what its markers say."""
    start = b"\xff\xd8\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x01"
    content = start + data + b"\xff\xd9"
    return content, jpeg.parse(content)


@given(st.lists(st.sampled_from([b"a", b"\x00", b"\xff\x00", b"\xff\xd0"]), max_size=30))
def test_padding_of_a_scan_is_what_a_loop_says(parts):
    data = b"a" + b"".join(parts)
    content, segments = scan_of(data)
    plain, _ = jpeg.without_oddities(content, segments)
    end = len(data)
    while data[end - 1] == 0 and data[end - 2] != 0xFF:
        end -= 1
    kept = end if len(data) - end <= jpeg.LONGEST_PADDING else len(data)
    assert plain == content[: -len(data) - 2] + data[:kept] + b"\xff\xd9"


@given(st.lists(st.sampled_from([b"\x00", b"\xff", b"\xd0", b"\xc4", b"a"]), max_size=40))
def test_coded_data_end_where_a_loop_says(parts):
    data = b"a" + b"".join(parts)
    content, segments = scan_of(data)
    coded = len(content) - len(data) - 2
    end = coded
    while end < len(content):
        run = end
        while run < len(content) and content[run] == 0xFF:
            run += 1
        follows = content[run : run + 1]
        if run > end and follows not in (b"", b"\x00") and not 0xD0 <= follows[0] <= 0xD7:
            break
        end = max(run, end + 1)
    assert (segments[0].coded, segments[0].end) == (coded, end)


def test_a_hole_of_zeros_takes_no_time_that_grows_with_its_square():
    content, segments = scan_of(b"a" + bytes(2**20) + b"a")
    assert jpeg.without_oddities(content, segments)[0] == content


def test_segments_agree_with_the_decoder():
    for name, content in whole().items():
        if name.endswith("png"):
            continue
        segments = jpeg.parse(content)
        assert jpeg.end_of_image(segments) == len(content)
        header = jpeg.read_header(content, segments)
        assert not jpeg.lacks_scans(content, header, segments)
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        assert header.size == (width, height)
        assert segments[0].start == 2
        for one, following in itertools.pairwise(segments):
            assert one.end == following.start


def _regular(path, length=None):
    size = path.stat().st_size if length is None else length
    return Item(path.name, "key", 0, "", str(path), 0, size)


def test_reading_goes_wrong_without_blocking(tmp_path):
    good = tmp_path / "good.jpg"
    good.write_bytes(photographs()[0])
    examination, content = examine_item(_regular(good))
    assert examination.verdict == "ok"
    assert content == photographs()[0]
    os.mkfifo(tmp_path / "fifo.jpg")
    gone = Item("gone.jpg", "key", 0, "", str(tmp_path / "gone.jpg"), 0, 10)
    shorter = _regular(good, good.stat().st_size + 1)
    for item in (gone, shorter, _regular(tmp_path / "fifo.jpg", 10)):
        examination, content = examine_item(item)
        assert (examination.verdict, examination.reasons) == ("corrupt", ("unreadable",))
        assert content == b""
    sparse = tmp_path / "sparse.jpg"
    with sparse.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert examine_item(_regular(sparse))[0].reasons == ("too-large",)
    assert stat.S_ISFIFO((tmp_path / "fifo.jpg").stat().st_mode)


def _large_png():
    side = int(MOST_PIXELS**0.5)
    packer = zlib.compressobj(1)
    row = b"\x00" + bytes(range(256)) * (4 * side // 256)
    packed = [packer.compress(row) for _ in range(side)]
    return build_png((side, side), 8, 6, b"".join([*packed, packer.flush()]))


def _large_jpeg(width, height, **options):
    tile = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pixels = np.tile(tile, (height // 256, width // 256, 1))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=30, **options)
    return stream.getvalue()


def _examine_and_hash(item):
    examination, content = examine_item(item)
    hashed = full_pixels(content)
    return examination, hashed, peak_memory()


def test_images_as_large_as_allowed_stay_below_512_megabytes(tmp_path):
    large = {
        "progressive.jpg": _large_jpeg(7168, 5632, subsampling=0, progressive=True),
        "baseline.jpg": _large_jpeg(8192, 8192),
        "alpha.png": _large_png(),
    }
    for name, content in large.items():
        (tmp_path / name).write_bytes(content)
    items = [_regular(tmp_path / name) for name in large]
    for item, result in zip(items, map_surviving(_examine_and_hash, items, workers=1), strict=True):
        assert not isinstance(result, Crash), item.source
        examination, hashed, peak = result
        assert examination.verdict == "ok", item.source
        assert hashed
        assert 64 * MB < peak < 512 * MB, item.source


def test_chunks_of_a_png_are_counted():
    many = b"".join([chunk(b"teXt", b"")] * (png.MOST_CHUNKS + 1))
    assert examine(build_png((8, 8), 8, 0, b"", before=many), "").reasons == ("damaged-header",)


def test_an_examination_is_plain_data():
    found = examine(photographs()[0], "a.jpg")
    assert found == Examination(
        "ok", (), (), "jpg", (512, 512), hashlib.sha256(photographs()[0]).hexdigest(), found.pixels
    )
    assert len(found.pixels) == 64
