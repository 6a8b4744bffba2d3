"""Decide from the bytes of an image whether it is whole.

The header bounds what a hostile file could ask for before it is decoded: an image, its bytes
and copies of them stay below 512 MiB.
"""

import hashlib
import os
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import ExifTags, Image

from data_shards.errors import DataShardsError
from data_shards.images import jpeg, png, webp
from data_shards.images.colours import to_rgb
from data_shards.images.unfit import UnfitError
from data_shards.sources.listing import Item, read_item

Verdict: TypeAlias = Literal["ok", "suspect", "corrupt", "refused"]

MOST_BYTES = 64 * 2**20  # of a file
MOST_PIXELS = 64 * 2**20  # the largest photographs of ImageNet have 61 million
LARGEST_DECODE = 352 * 2**20  # bytes for the pixels and the coefficients
MOST_ASPECT = 100  # long side divided by short side
MOST_SCAN_PIXELS = 2**30  # pixels times scans of a progressive JPEG: seconds of work
MOST_SCANS = 100
SMALLEST_SIDE = 8  # pixels; below, an image is suspect
UNSUPPORTED = "unsupported-format"  # the reason of an image that is neither JPEG nor PNG

# A tail is the lower TAIL_FRACTION of an image. Decoders fill the missing part of a truncated
# file with middle grey. A tool that saved the result made it look like a whole image.
TAIL_FRACTION = 0.1
_GREY = (126, 130)
_CONSTANT_SPREAD = 2

_SUFFIXES = {
    "jpg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png",),
    "webp": (".webp",),
}
IMAGE_SUFFIXES = frozenset(
    (*_SUFFIXES["jpg"], *_SUFFIXES["png"], ".gif", ".bmp", ".webp", ".tif", ".tiff", ".heic")
)


@dataclass(frozen=True, slots=True)
class Examination:
    """What is known of an image.

    ``reasons`` are short codes for a verdict other than ok. ``flags`` are facts that stay
    with a sample, whatever its verdict. ``extension`` is ``"jpg"``, ``"png"`` or ``"webp"`` by
    content, ``""`` for anything else. ``size`` is (width, height) in pixels, (0, 0) if unknown.
    ``sha256`` is of the bytes. ``pixels`` is a hash that two files of one format share if
    their pixels are equal, ``""`` if there are no pixels. For a JPEG it is computed at an
    eighth of the size, so equality has to be confirmed (``full_pixels``).
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    extension: str
    size: tuple[int, int]
    sha256: str
    pixels: str


@dataclass(slots=True)
class _Notes:
    """What is known of an image while it is examined."""

    extension: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: str = ""
    suspect: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def examine(content: bytes, name: str, *, allow_webp: bool = False) -> Examination:
    """Examine one image file; ``name`` only tells whether its extension fits.

    Never raises on hostile bytes. A Huffman-coded 8-bit JPEG has to decode without any
    warning of the decoder, at least after its oddities are taken out (suspect). A PNG needs
    right checksums and a whole stream. A WebP file, if it is allowed, has to be whole and to decode
    without an error. Other formats are refused.
    """
    notes = _Notes()
    verdict: Verdict
    try:
        _look(content, name, notes, allow_webp=allow_webp)
        verdict, reasons = "suspect" if notes.suspect else "ok", notes.suspect
    except UnfitError as error:
        verdict, reasons = error.verdict, (error.reason,)
    except MemoryError:
        verdict, reasons = "refused", ("too-large",)
    return Examination(
        verdict=verdict,
        reasons=reasons,
        flags=notes.flags,
        extension=notes.extension,
        size=notes.size,
        sha256=hashlib.sha256(content).hexdigest(),
        pixels=notes.pixels,
    )


def _look(content: bytes, name: str, notes: _Notes, *, allow_webp: bool) -> None:
    if not content:
        raise UnfitError("corrupt", "empty")
    if len(content) > MOST_BYTES:
        raise UnfitError("refused", "too-large")
    if content.startswith(b"\xff\xd8\xff"):
        notes.extension, look = "jpg", _look_at_jpeg
    elif content.startswith(png.SIGNATURE):
        notes.extension, look = "png", _look_at_png
    elif allow_webp and webp.is_webp(content):
        notes.extension, look = "webp", _look_at_webp
    elif _is_other_format(content):
        raise UnfitError("refused", UNSUPPORTED)
    else:
        raise UnfitError("corrupt", "not-an-image")
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES and suffix not in _SUFFIXES[notes.extension]:
        notes.flags += ("wrong-extension",)
    look(content, notes)


def _is_other_format(content: bytes) -> bool:
    return (
        content.startswith((b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*", b"8BPS"))
        or webp.is_webp(content)
        or content[4:8] == b"ftyp"
    )


def _bound(width: int, height: int, notes: _Notes) -> None:
    """Note the size; UnfitError if the image is too large to be decoded."""
    notes.size = (width, height)
    short, long = sorted(notes.size)
    if width * height > MOST_PIXELS:
        raise UnfitError("refused", "too-large")
    if long > MOST_ASPECT * short > 0:
        raise UnfitError("refused", "absurd-aspect")
    if 0 < short < SMALLEST_SIDE:
        notes.suspect += ("tiny",)


def _look_at_jpeg(content: bytes, notes: _Notes) -> None:
    segments = jpeg.parse(content)
    scans = len(jpeg.scans(segments))
    if len(segments) == jpeg.MOST_SEGMENTS or scans > MOST_SCANS:
        raise UnfitError("refused", "too-many-segments")
    header = jpeg.read_header(content, segments)
    _bound(*header.size, notes)
    pixels = header.width * header.height
    if scans * pixels > MOST_SCAN_PIXELS:
        raise UnfitError("refused", "too-many-scans")
    if 3 * pixels + jpeg.coefficient_bytes(header, segments) > LARGEST_DECODE:
        raise UnfitError("refused", "too-large")
    if header.layers == 4:
        notes.flags += ("cmyk",)
    if 0 <= jpeg.end_of_image(segments) < len(content):
        notes.flags += ("trailing-bytes",)
    _flag_metadata(header.info, notes)
    small, oddities = jpeg.decode_strictly(content, header, segments)
    notes.suspect += oddities
    notes.pixels = _pixel_hash("jpg", notes.size, [small.tobytes()])
    flat = small.reshape(-1, 3)
    # A few pixels tell nearly every image from a constant one, and cost little.
    is_constant = _varies_little(flat[:: 1 + len(flat) // 64]) and _varies_little(flat)
    _note_pixels(is_constant, small[-_tail(len(small)) :], notes)


def _look_at_png(content: bytes, notes: _Notes) -> None:
    found = []
    for chunk in png.chunks(content):
        found.append(chunk)
        if chunk.kind == b"IHDR":
            width, height = struct.unpack_from(">II", chunk.body)
            _bound(width, height, notes)
    header = bytes(found[0].body)
    png.check_stream(header, [chunk.body for chunk in found if chunk.kind == b"IDAT"])
    image = png.load(content)
    facts = {
        "palette": image.mode == "P",
        "alpha": image.has_transparency_data,
        "16-bit": header[8] == 16,
        "animated": any(chunk.kind == b"acTL" for chunk in found),
        "trailing-bytes": found[-1].end < len(content),
    }
    notes.flags += tuple(fact for fact, holds in facts.items() if holds)
    _flag_metadata(image.info, notes)
    notes.pixels = _pixel_hash(image.mode, notes.size, png.rows(image))
    bottom = image.crop((0, image.height - _tail(image.height), *image.size))
    is_constant = np.ptp(image.getextrema(), axis=-1).max() == 0
    _note_pixels(is_constant, np.asarray(to_rgb(bottom)), notes)


def _look_at_webp(content: bytes, notes: _Notes) -> None:
    image = webp.opened(content)
    _bound(*image.size, notes)
    if webp.DECODED_BYTES * image.width * image.height > LARGEST_DECODE:
        raise UnfitError("refused", "too-large")
    webp.load(image)
    facts = {
        "alpha": image.has_transparency_data,
        "animated": getattr(image, "n_frames", 1) > 1,
        "trailing-bytes": webp.end_of_image(content) < len(content),
    }
    notes.flags += tuple(fact for fact, holds in facts.items() if holds)
    _flag_metadata(image.info, notes)
    notes.pixels = _pixel_hash(f"webp {image.mode}", notes.size, png.rows(image))
    bottom = image.crop((0, image.height - _tail(image.height), *image.size))
    is_constant = np.ptp(image.getextrema(), axis=-1).max() <= _CONSTANT_SPREAD
    _note_pixels(is_constant, np.asarray(to_rgb(bottom)), notes)


def _note_pixels(is_constant: bool, tail: jpeg.Pixels, notes: _Notes) -> None:
    """Note pixels that show no image. ``tail`` is the lower part of it in RGB."""
    if is_constant:
        notes.suspect += ("constant",)
    elif _GREY[0] <= int(tail.min()) and int(tail.max()) <= _GREY[1]:
        notes.suspect += ("grey-tail",)


def _tail(height: int) -> int:
    """Return how many of ``height`` rows are the tail."""
    return max(1, round(height * TAIL_FRACTION))


def _varies_little(pixels: jpeg.Pixels) -> bool:
    return int(np.ptp(pixels, axis=0).max()) <= _CONSTANT_SPREAD


def _flag_metadata(info: dict[str | tuple[int, int], Any], notes: _Notes) -> None:
    """Note the orientation and broken metadata, as Pillow found them in the file."""
    if "exif" in info:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                block = Image.Exif()
                block.load(info["exif"])
                orientation = block.get(ExifTags.Base.Orientation, 1)
        except MemoryError:
            raise
        except Exception:  # Pillow raises many kinds of errors on hostile metadata
            notes.flags += ("broken-exif",)
        else:
            if orientation != 1:
                notes.flags += ("exif-orientation",)
    if "icc_profile" in info:
        profile = info["icc_profile"]
        whole = isinstance(profile, bytes) and len(profile) >= 128 and profile[36:40] == b"acsp"
        if not whole or int.from_bytes(profile[:4], "big") != len(profile):
            notes.flags += ("broken-icc",)


def _pixel_hash(kind: str, size: tuple[int, int], parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256(f"{kind} {size[0]} {size[1]}\n".encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def examine_item(item: Item, *, allow_webp: bool = False) -> tuple[Examination, bytes]:
    """Read an image and examine it; return its bytes too, ``b""`` if they cannot be read."""
    if item.length > MOST_BYTES:
        return _unread("refused", "too-large"), b""
    try:
        content = read_item(item)
    except DataShardsError:
        return _unread("corrupt", "unreadable"), b""
    return examine(content, item.source, allow_webp=allow_webp), content


def _unread(verdict: Verdict, reason: str) -> Examination:
    return Examination(verdict, (reason,), (), "", (0, 0), "", "")


def full_pixels(content: bytes) -> str:
    """Return a hash of all the pixels of an image that is not corrupt, in hex.

    Equal for two images of the same size, format and pixels. ``""`` if it cannot be decoded.
    """
    try:
        if content.startswith(png.SIGNATURE):
            image = png.load(content)
            return _pixel_hash(image.mode, image.size, png.rows(image))
        if webp.is_webp(content):
            frame = webp.load(webp.opened(content))
            return _pixel_hash(f"webp {frame.mode}", frame.size, png.rows(frame))
        plain, _ = jpeg.without_oddities(content, jpeg.parse(content))
        pixels = jpeg.decode(plain)
        height, width, _ = pixels.shape
        return _pixel_hash("jpg", (width, height), [pixels.data])
    except (ValueError, UnfitError):
        return ""
