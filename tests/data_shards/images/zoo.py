"""Whole, odd and damaged images, from real photographs and generated ones.

:func:`zoo` has one image of each kind with the result expected of its examination.
:func:`mutants` damages whole images at random; the same seed gives the same damage.
"""

import importlib.util
import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from data_shards.images import jpeg


@dataclass(frozen=True)
class Exhibit:
    """A file and the exact ``verdict``, ``reasons`` and ``flags`` of its examination."""

    name: str
    content: bytes
    verdict: str
    reasons: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@cache
def photographs() -> tuple[bytes, ...]:
    """Return foolbox's 20 photographs from ImageNet, progressive JPEGs of 512 pixels."""
    spec = importlib.util.find_spec("foolbox")
    assert spec is not None
    assert spec.origin is not None
    paths = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    assert len(paths) == 20
    return tuple(path.read_bytes() for path in paths)


@cache
def _photograph(number: int, width: int, height: int) -> Image.Image:
    return Image.open(io.BytesIO(photographs()[number])).convert("RGB").resize((width, height))


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _place(content: bytes, marker: int) -> jpeg.Segment:
    return next(s for s in jpeg.parse(content) if s.marker == marker)


def _insert(content: bytes, marker: int, extra: bytes) -> bytes:
    start = _place(content, marker).start
    return content[:start] + extra + content[start:]


def _patch(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


def _resized(content: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header claims another size."""
    frame = next(s for s in jpeg.parse(content) if s.marker in (0xC0, 0xC1, 0xC2))
    return _patch(content, frame.body + 1, struct.pack(">HH", height, width))


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk with the right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int],
    depth: int,
    colour: int,
    packed: bytes,
    *,
    interlace: int = 0,
    before: bytes = b"",
) -> bytes:
    """Return a PNG file around the compressed image data ``packed``."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before
    return start + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _interlaced() -> bytes:
    pixels = np.random.default_rng(5).integers(0, 256, (21, 19), dtype=np.uint8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    rows = [
        b"\x00" + row.tobytes()
        for y, x, dy, dx in [*passes, (1, 0, 2, 1)]
        for row in pixels[y::dy, x::dx]
    ]
    return png((19, 21), 8, 0, zlib.compress(b"".join(rows)), interlace=1)


def _scan_bomb(scans: int, side: int) -> bytes:
    """Return a small grey progressive JPEG of ``side`` pixels squared with many empty scans."""
    frame = _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00")
    quantization = _segment(0xDB, b"\x00" + b"\x01" * 64)
    # One code of one bit each: DC "no difference", AC "the rest of 2**14 and more blocks is 0".
    tables = _segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00")
    tables += _segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0")
    blocks = (-(-side // 8)) ** 2
    first = _segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + bytes(-(-blocks // 8))
    other = _segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + bytes(-(-blocks * 15 // 8 // 2**14) + 2)
    return b"\xff\xd8" + quantization + frame + tables + first + other * (scans - 1) + b"\xff\xd9"


def _grey_tail(image: Image.Image, part: float) -> Image.Image:
    pixels = np.array(image)
    pixels[round(len(pixels) * (1 - part)) :] = 128
    return Image.fromarray(pixels)


@cache  # it contains the time of its creation
def _icc() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def whole() -> dict[str, bytes]:
    """Return whole images of many kinds, without oddities, by name."""
    photo = _photograph(0, 200, 150)
    other = _photograph(13, 133, 97)
    exif = Image.Exif()
    exif[0x010F] = "camera"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a text", zip=True)
    return {
        **{f"photograph-{n}.JPEG": content for n, content in enumerate(photographs())},
        "baseline.jpg": _save(photo, "JPEG", quality=90),
        "no-subsampling.jpg": _save(other, "JPEG", quality=95, subsampling=0),
        "optimized.jpg": _save(photo, "JPEG", quality=75, subsampling=1, optimize=True),
        "progressive.jpg": _save(other, "JPEG", quality=85, progressive=True),
        "restarts.jpg": _save(photo, "JPEG", quality=80, restart_marker_rows=1),
        "grey.jpg": _save(other.convert("L"), "JPEG"),
        "grey-progressive.jpg": _save(photo.convert("L"), "JPEG", progressive=True),
        "exif-icc.jpg": _save(photo, "JPEG", exif=exif, icc_profile=_icc(), comment="hello"),
        "colour.png": _save(photo, "PNG"),
        "grey.png": _save(other.convert("L"), "PNG"),
        "bits.png": _save(photo.convert("1"), "PNG"),
        "text-icc.png": _save(other, "PNG", pnginfo=text, icc_profile=_icc(), exif=exif),
        "interlaced.png": _interlaced(),
    }


def _flagged() -> Iterator[Exhibit]:
    photo = _photograph(1, 160, 120)
    plain = _save(photo, "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    bad_icc = _icc()[:-40]
    yield Exhibit("cmyk.jpg", _save(photo.convert("CMYK"), "JPEG"), "ok", (), ("cmyk",))
    yield Exhibit("palette.png", _save(photo.quantize(64), "PNG"), "ok", (), ("palette",))
    alpha = photo.copy()
    alpha.putalpha(77)
    yield Exhibit("alpha.png", _save(alpha, "PNG"), "ok", (), ("alpha",))
    grey_alpha = _save(alpha.convert("LA"), "PNG")
    yield Exhibit("grey-alpha.png", grey_alpha, "ok", (), ("alpha",))
    see_through = _save(photo.quantize(16), "PNG", transparency=3)
    yield Exhibit("see-through.png", see_through, "ok", (), ("palette", "alpha"))
    deep = Image.fromarray(np.array(photo.convert("L")).astype(np.uint16) * 257)
    yield Exhibit("deep.png", _save(deep, "PNG"), "ok", (), ("16-bit",))
    frames = _save(photo, "PNG", save_all=True, append_images=[photo.rotate(180)])
    yield Exhibit("animated.png", frames, "ok", (), ("animated",))
    yield Exhibit("a-png.JPEG", _save(photo, "PNG"), "ok", (), ("wrong-extension",))
    yield Exhibit("a-jpeg.png", plain, "ok", (), ("wrong-extension",))
    yield Exhibit("trailing.jpg", plain + b"garbage" * 99, "ok", (), ("trailing-bytes",))
    yield Exhibit("two-files.jpg", plain + plain, "ok", (), ("trailing-bytes",))
    trailing = _save(photo, "PNG") + bytes(7)
    yield Exhibit("trailing.png", trailing, "ok", (), ("trailing-bytes",))
    yield Exhibit("turned.jpg", _save(photo, "JPEG", exif=turned), "ok", (), ("exif-orientation",))
    yield Exhibit("turned.png", _save(photo, "PNG", exif=turned), "ok", (), ("exif-orientation",))
    exif = _segment(0xE1, b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xee" * 40)
    yield Exhibit("bad-exif.jpg", _insert(plain, 0xDB, exif), "ok", (), ("broken-exif",))
    short_icc = _save(photo, "JPEG", icc_profile=bad_icc)
    yield Exhibit("bad-icc.jpg", short_icc, "ok", (), ("broken-icc",))
    yield Exhibit(
        "bad-icc.png", _save(photo, "PNG", icc_profile=bad_icc), "ok", (), ("broken-icc",)
    )
    unpackable = chunk(b"iCCP", b"name\x00\x00not zlib")
    rows = zlib.compress(b"".join(b"\x00" + bytes(range(y, y + 30)) for y in range(40)))
    bad = png((30, 40), 8, 0, rows, before=unpackable)
    yield Exhibit("unpackable-icc.png", bad, "ok", (), ("broken-icc",))


def _suspect() -> Iterator[Exhibit]:
    photo = _photograph(2, 160, 120)
    plain = _save(photo, "JPEG", comment="a comment")
    progressive = _save(photo, "JPEG", progressive=True)
    extraneous = ("extraneous-bytes",)
    for name, marker in (("table", 0xDB), ("frame", 0xC0), ("codes", 0xC4), ("scan", 0xDA)):
        odd = _insert(plain, marker, b"\x00\x01\x02")
        yield Exhibit(f"bytes-before-{name}.jpg", odd, "suspect", extraneous)
    odd = _insert(progressive, 0xDB, b"abc")
    yield Exhibit("bytes-progressive.jpg", odd, "suspect", extraneous)
    comment = _place(plain, 0xFE)
    odd = _patch(plain, comment.start + 2, b"\x00\x03")
    yield Exhibit("short-comment.jpg", odd, "suspect", extraneous)
    app0, scan = _place(plain, 0xE0), _place(plain, 0xDA)
    odd = _patch(plain, app0.body + 5, b"\x03")
    yield Exhibit("jfif-revision.jpg", odd, "suspect", ("jfif-revision",))
    for number, parameters in enumerate((b"\x00\x00\x00", b"\x01\x3f\x00", b"\x00\x3f\x12")):
        odd = _patch(plain, scan.coded - 3, parameters)
        yield Exhibit(f"scan-parameters-{number}.jpg", odd, "suspect", ("scan-parameters",))
    adobe = _segment(0xEE, b"Adobe\x00\x64\x00\x00\x00\x00\x07")
    odd = plain[: app0.start] + adobe + plain[app0.end :]
    yield Exhibit("adobe-transform.jpg", odd, "suspect", ("adobe-transform",))
    profile = _segment(0xE2, b"ICC_PROFILE\x00\x01\x03" + b"x" * 200)
    odd = _insert(plain, 0xDB, profile)
    yield Exhibit("part-of-icc.jpg", odd, "suspect", ("broken-icc",), ("broken-icc",))
    end = _place(plain, 0xD9).start
    odd = plain[:end] + bytes(12) + plain[end:]
    yield Exhibit("padded-scan.jpg", odd, "suspect", ("padded-scan",))
    two = _patch(_insert(plain, 0xC4, b"ab"), app0.body + 5, b"\x03")
    yield Exhibit("two-oddities.jpg", two, "suspect", ("extraneous-bytes", "jfif-revision"))
    red = Image.new("RGB", (90, 60), (200, 10, 10))
    for kind, name in (("JPEG", "jpg"), ("PNG", "png")):
        yield Exhibit(f"constant.{name}", _save(red, kind), "suspect", ("constant",))
        grey = _save(_grey_tail(photo, 0.3), kind)
        yield Exhibit(f"grey-tail.{name}", grey, "suspect", ("grey-tail",))
        tiny = _save(_photograph(3, 40, 5), kind)
        yield Exhibit(f"tiny.{name}", tiny, "suspect", ("tiny",))


def _damaged_jpegs() -> Iterator[Exhibit]:
    photo = _photograph(4, 320, 240)
    plain = _save(photo, "JPEG", quality=90)
    progressive = photographs()[4]
    eoi = b"\xff\xd9"
    damaged, truncated = ("damaged-data",), ("truncated",)
    for kind, content in (("baseline", plain), ("progressive", progressive)):
        size = len(content)
        middle = _place(content, 0xDA).coded + 2000
        for part in (30, 60, 90):
            cut = content[: size * part // 100]
            yield Exhibit(f"{kind}-truncated-{part}.jpg", cut, "corrupt", truncated)
            name = f"{kind}-truncated-{part}-with-end.jpg"
            yield Exhibit(name, cut + eoi, "corrupt", damaged)
        yield Exhibit(f"{kind}-no-end.jpg", content[:-2], "corrupt", truncated)
        zeroed = content[: size * 3 // 4] + bytes(size - size * 3 // 4)
        yield Exhibit(f"{kind}-tail-zeroed.jpg", zeroed, "corrupt", truncated)
        with_end = zeroed[:-2] + eoi
        yield Exhibit(f"{kind}-tail-zeroed-with-end.jpg", with_end, "corrupt", damaged)
        noise = random.Random(6).randbytes(512).replace(b"\xff", b"\xfe")
        noisy = _patch(content, middle, noise)
        yield Exhibit(f"{kind}-noise.jpg", noisy, "corrupt", damaged)
        hole = _patch(content, middle, bytes(4096))
        yield Exhibit(f"{kind}-hole.jpg", hole, "corrupt", damaged)
        # A harmless warning comes first, and the decoder reports only the first.
        behind = _insert(content[: size // 2] + eoi, 0xDB, b"ab")
        yield Exhibit(f"{kind}-oddity-hides-damage.jpg", behind, "corrupt", damaged)
    other = _save(_photograph(5, 320, 240), "JPEG", quality=90)
    halves = plain[: len(plain) // 2] + other[len(other) // 2 :]
    yield Exhibit("halves.jpg", halves, "corrupt", damaged)
    # A decoder that skips it inside the coded data loses what follows.
    scan, profile = _place(plain, 0xDA), _segment(0xE2, b"ICC_PROFILE\x00\x01\x03" + b"x" * 200)
    data = plain[: scan.coded + 40] + profile + plain[scan.coded + 40 :]
    yield Exhibit("icc-in-scan.jpg", data, "corrupt", ("damaged-data",))
    end = _place(plain, 0xD9).start
    rest = plain[:end] + b"\x5a" * 12 + plain[end:]
    yield Exhibit("bytes-behind-data.jpg", rest, "corrupt", damaged)
    scans = [s for s in jpeg.parse(progressive) if s.marker == 0xDA]
    lost = ("missing-scan",)
    yield Exhibit("last-scan-cut.jpg", progressive[: scans[-2].end] + eoi, "corrupt", lost)
    middle_cut = progressive[: scans[3].start] + progressive[scans[3].end :]
    yield Exhibit("middle-scan-cut.jpg", middle_cut, "corrupt", ("damaged-data",))
    unmarked = _patch(progressive, scans[-1].start, b"\x00")
    yield Exhibit("scan-without-marker.jpg", unmarked, "corrupt", damaged)
    header = ("damaged-header",)
    table, frame = _place(plain, 0xC4), _place(plain, 0xC0)
    for name, segment in (("frame", frame), ("quantization", _place(plain, 0xDB))):
        lacking = plain[: segment.start] + plain[segment.end :]
        yield Exhibit(f"no-{name}.jpg", lacking, "corrupt", header)
    full = _patch(plain, table.body + 1, b"\xff" * 16)
    yield Exhibit("bad-codes.jpg", full, "corrupt", header)
    twice = plain[: frame.end] + plain[frame.start :]
    yield Exhibit("two-frames.jpg", twice, "corrupt", header)
    yield Exhibit("header-alone.jpg", plain[: _place(plain, 0xDA).coded], "corrupt", truncated)
    yield Exhibit("start-alone.jpg", plain[:3], "corrupt", header)


def _damaged_pngs() -> Iterator[Exhibit]:
    photo = _photograph(7, 120, 90)
    plain = _save(photo, "PNG")
    damaged, header, truncated = ("damaged-data",), ("damaged-header",), ("truncated",)
    yield Exhibit("cut.png", plain[: len(plain) // 2], "corrupt", truncated)
    yield Exhibit("no-end.png", plain[:-12], "corrupt", truncated)
    middle = len(plain) // 2
    flipped = _patch(plain, middle, bytes([plain[middle] ^ 1]))
    yield Exhibit("flipped.png", flipped, "corrupt", damaged)
    yield Exhibit("flipped-header.png", _patch(plain, 18, b"\x7f"), "corrupt", header)
    rows = b"".join(b"\x00" + row.tobytes() for row in np.array(photo))
    size = photo.size
    packed = zlib.compress(rows)
    short = zlib.compress(rows[:-400])
    yield Exhibit("rows-missing.png", png(size, 8, 2, short), "corrupt", damaged)
    yield Exhibit(
        "rows-too-many.png", png(size, 8, 2, zlib.compress(rows + rows)), "corrupt", damaged
    )
    yield Exhibit("stream-cut.png", png(size, 8, 2, packed[:-100]), "corrupt", damaged)
    wrong_sum = packed[:-1] + bytes([packed[-1] ^ 1])
    yield Exhibit("stream-sum.png", png(size, 8, 2, wrong_sum), "corrupt", damaged)
    # Pillow decodes it and leaves the missing pixels black.
    few = png((8, 9), 1, 0, zlib.compress(bytes(2)), interlace=1)
    yield Exhibit("interlaced-short.png", few, "corrupt", damaged)
    filtered = b"\x09" + rows[1:]
    bad_filter = png(size, 8, 2, zlib.compress(filtered))
    yield Exhibit("bad-filter.png", bad_filter, "corrupt", header)
    yield Exhibit("no-palette.png", png((8, 8), 8, 3, zlib.compress(bytes(72))), "corrupt", header)
    yield Exhibit("bad-depth.png", png((8, 8), 3, 2, b""), "corrupt", damaged)
    yield Exhibit("bad-interlace.png", png(size, 8, 2, packed, interlace=2), "corrupt", header)
    yield Exhibit("signature-alone.png", plain[:8], "corrupt", truncated)
    bomb = zlib.compress(bytes(300 * 2**20), 1)
    yield Exhibit("stream-bomb.png", png((64, 64), 8, 0, bomb), "corrupt", damaged)


def _refused() -> Iterator[Exhibit]:
    photo = _photograph(8, 120, 90)
    plain = _save(photo, "JPEG")
    large, other = ("too-large",), ("unsupported-format",)
    yield Exhibit("huge.jpg", _resized(plain, 65500, 65500), "refused", large)
    yield Exhibit("huge.png", png((60000, 60000), 8, 6, b""), "refused", large)
    claims = _resized(_save(photo, "JPEG", progressive=True, subsampling=0), 8000, 6000)
    yield Exhibit("huge-progressive.jpg", claims, "refused", large)
    text = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(200 * 2**20), 1))
    rows = zlib.compress(b"".join(b"\x00" + bytes(range(y, y + 30)) for y in range(40)))
    yield Exhibit("text-bomb.png", png((30, 40), 8, 0, rows, before=text), "refused", large)
    yield Exhibit(
        "line.jpg", _save(_photograph(8, 3000, 20), "JPEG"), "refused", ("absurd-aspect",)
    )
    yield Exhibit("line.png", png((2, 4000), 8, 0, b""), "refused", ("absurd-aspect",))
    yield Exhibit("scans.jpg", _scan_bomb(90, 6000), "refused", ("too-many-scans",))
    yield Exhibit("more-scans.jpg", _scan_bomb(2000, 64), "refused", ("too-many-segments",))
    comments = _insert(plain, 0xDB, _segment(0xFE, b"") * 5000)
    yield Exhibit("comments.jpg", comments, "refused", ("too-many-segments",))
    frame = _place(plain, 0xC0)
    for name, marker in (("lossless", 0xC3), ("arithmetic", 0xC9), ("hierarchical", 0xC5)):
        claims = _patch(plain, frame.start + 1, bytes([marker]))
        yield Exhibit(f"{name}.jpg", claims, "refused", ("unsupported-jpeg",))
    odd = _patch(plain, frame.body + 7, b"\x31")
    yield Exhibit("odd-sampling.jpg", odd, "refused", ("unsupported-jpeg",))
    twelve = _patch(plain, frame.body, b"\x0c")
    yield Exhibit("12-bit.jpg", twelve, "refused", ("unsupported-jpeg",))
    yield Exhibit("a-gif.jpg", _save(photo, "GIF"), "refused", other)
    yield Exhibit("a-bmp.jpg", _save(photo, "BMP"), "refused", other)
    yield Exhibit("a-tiff.jpg", _save(photo, "TIFF"), "refused", other)
    yield Exhibit("a-webp.jpg", _save(photo, "WEBP"), "refused", other)


def _no_images() -> Iterator[Exhibit]:
    yield Exhibit("empty.jpg", b"", "corrupt", ("empty",))
    page = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
    yield Exhibit("page.jpg", page, "corrupt", ("not-an-image",))
    yield Exhibit("noise.png", random.Random(9).randbytes(5000), "corrupt", ("not-an-image",))
    yield Exhibit("zeros.jpg", bytes(5000), "corrupt", ("not-an-image",))
    headless = photographs()[9][1:]
    yield Exhibit("headless.jpg", headless, "corrupt", ("not-an-image",))


@cache
def zoo() -> tuple[Exhibit, ...]:
    """Return images of every kind; names are unique."""
    exhibits = [Exhibit(name, content, "ok") for name, content in whole().items()]
    for part in (_flagged, _suspect, _damaged_jpegs, _damaged_pngs, _refused, _no_images):
        exhibits += part()
    assert len({exhibit.name for exhibit in exhibits}) == len(exhibits)
    return tuple(exhibits)


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes.

    This is not ``ru_maxrss``, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024


@dataclass(frozen=True)
class Mutant:
    """A damaged copy of an image of :func:`parents`, by its name there; ``kind`` of damage."""

    parent: str
    kind: str
    content: bytes


@cache
def parents() -> dict[str, bytes]:
    """Return small whole images to damage, by name."""
    photos = [_photograph(number, 96, 72) for number in range(10, 16)]
    made = {}
    for number, photo in enumerate(photos):
        made[f"{number}-baseline.jpg"] = _save(photo, "JPEG", quality=90)
        made[f"{number}-444.jpg"] = _save(photo, "JPEG", quality=70, subsampling=0, optimize=True)
        made[f"{number}-progressive.jpg"] = _save(photo, "JPEG", quality=85, progressive=True)
        made[f"{number}-restarts.jpg"] = _save(photo, "JPEG", quality=80, restart_marker_rows=1)
    made["grey.jpg"] = _save(photos[0].convert("L"), "JPEG")
    made["cmyk.jpg"] = _save(photos[1].convert("CMYK"), "JPEG")
    made["colour.png"] = _save(photos[2], "PNG")
    made["palette.png"] = _save(photos[3].quantize(32), "PNG")
    return made


def mutants(count: int, seed: int) -> Iterator[Mutant]:
    """Yield ``count`` damaged images: bits, bytes and stretches changed, cut, moved, joined."""
    names = sorted(parents())
    draw = random.Random(seed)
    for _ in range(count):
        name = draw.choice(names)
        content = bytearray(parents()[name])
        kinds = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            kinds.append(_damage(content, draw))
        yield Mutant(name, "+".join(kinds), bytes(content))


def _damage(content: bytearray, draw: random.Random) -> str:
    # Half of the damage hits the first part, where the header is.
    size = len(content)
    reach = size if draw.random() < 0.5 else min(size, 700)
    place = draw.randrange(reach) if reach else 0
    length = draw.choice((1, 1, 2, 4, 16, 64, 512))
    kind = draw.choice(
        ("bit", "byte", "noise", "zeros", "delete", "insert", "truncate", "end", "repeat", "marker")
    )
    if kind == "bit" and size:
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "byte" and size:
        content[place] = draw.randrange(256)
    elif kind == "noise":
        content[place : place + length] = draw.randbytes(length)
    elif kind == "zeros":
        content[place : place + 4 * length] = bytes(len(content[place : place + 4 * length]))
    elif kind == "delete":
        del content[place : place + length]
    elif kind == "insert":
        content[place:place] = draw.randbytes(length)
    elif kind == "truncate":
        del content[draw.randrange(size + 1) :]
    elif kind == "end":
        content[draw.randrange(size + 1) :] = b"\xff\xd9"
    elif kind == "repeat":
        content[place:place] = content[draw.randrange(size + 1) :][:length]
    elif kind == "marker":
        content[place : place + 2] = bytes((0xFF, draw.randrange(256)))
    return kind
