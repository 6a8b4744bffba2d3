"""Whether an image is whole, decided from its bytes alone.

Everything a hostile file could ask for is bounded from its header before it is decoded: an
image, its bytes and copies of them stay below 512 MiB.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from data_shards.errors import DataShardsError
from data_shards.images import jpeg, png
from data_shards.images.colours import to_rgb
from data_shards.sources.listing import Item, read_item

Verdict: TypeAlias = Literal["ok", "suspect", "corrupt", "refused"]

MOST_BYTES = 64 * 2**20  # of a file
MOST_PIXELS = 64 * 2**20  # the largest photographs of ImageNet have 61 million
LARGEST_DECODE = 352 * 2**20  # bytes for the pixels and what a decoder holds besides
MOST_ASPECT = 100  # long side through short side
MOST_SCAN_PIXELS = 2**30  # pixels times scans of a progressive JPEG: seconds of work
MOST_SCANS = 100
SMALLEST_SIDE = 8  # pixels; below, an image is suspect

# A tail is the lower TAIL_FRACTION of an image. Decoders fill what a truncated file lacks
# with the middle grey, and a tool that saved the result made it look like a whole image.
TAIL_FRACTION = 0.1
_GREY = (126, 130)
_CONSTANT_SPREAD = 2

_SUFFIXES = {"jpg": (".jpg", ".jpeg", ".jpe", ".jfif"), "png": (".png",)}
IMAGE_SUFFIXES = frozenset(
    (*_SUFFIXES["jpg"], *_SUFFIXES["png"], ".gif", ".bmp", ".webp", ".tif", ".tiff", ".heic")
)
_ORIENTATION = 0x0112
# How Pillow words that compressed text or a profile would unpack to too much.
_BOMB = re.compile("too large|[Tt]oo much memory")


@dataclass(frozen=True, slots=True)
class Examination:
    """What is known of an image.

    ``reasons`` are short codes for a verdict other than ok; ``flags`` are facts that stay
    with a sample, whatever its verdict. ``extension`` is ``"jpg"`` or ``"png"`` by content,
    ``""`` for anything else; ``size`` is (width, height) in pixels, (0, 0) if unknown;
    ``sha256`` that of the bytes. ``pixels`` is a hash that two files of one format share if
    their pixels are equal; for a JPEG it comes from a decoding at an eighth of the size, so
    equality has to be confirmed (``full_pixels``). It is ``""`` if there are no pixels.
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
    """What gathers while an image is examined."""

    extension: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: str = ""
    corrupt: str = ""
    refused: str = ""
    suspect: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def examine(content: bytes, name: str) -> Examination:
    """Examine one image file; ``name`` only tells whether its extension fits.

    Never raises on hostile bytes. A Huffman-coded 8-bit JPEG has to decode without any
    warning of the decoder, or to be as good without its oddities (suspect); a PNG needs
    right checksums and a whole stream. Other formats are refused.
    """
    notes = _Notes()
    try:
        _look(content, name, notes)
    except MemoryError:
        notes.refused = "too-large"
    reasons: tuple[str, ...] = notes.suspect
    verdict: Verdict = "suspect" if reasons else "ok"
    if notes.corrupt:
        verdict, reasons = "corrupt", (notes.corrupt,)
    elif notes.refused:
        verdict, reasons = "refused", (notes.refused,)
    return Examination(
        verdict=verdict,
        reasons=reasons,
        flags=notes.flags,
        extension=notes.extension,
        size=notes.size,
        sha256=hashlib.sha256(content).hexdigest(),
        pixels=notes.pixels,
    )


def _look(content: bytes, name: str, notes: _Notes) -> None:
    if not content:
        notes.corrupt = "empty"
    elif len(content) > MOST_BYTES:
        notes.refused = "too-large"
    elif content.startswith(b"\xff\xd8\xff"):
        notes.extension = "jpg"
        _flag_extension(name, notes)
        _look_at_jpeg(content, notes)
    elif content.startswith(png.SIGNATURE):
        notes.extension = "png"
        _flag_extension(name, notes)
        _look_at_png(content, notes)
    elif _is_other_format(content):
        notes.refused = "unsupported-format"
    else:
        notes.corrupt = "not-an-image"


def _flag_extension(name: str, notes: _Notes) -> None:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES and suffix not in _SUFFIXES[notes.extension]:
        notes.flags += ("wrong-extension",)


def _is_other_format(content: bytes) -> bool:
    return (
        content.startswith((b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*", b"8BPS"))
        or (content.startswith(b"RIFF") and content[8:12] == b"WEBP")
        or content[4:8] == b"ftyp"
    )


def _bounded(width: int, height: int, notes: _Notes) -> bool:
    """Note the size; say whether it may be decoded."""
    notes.size = (width, height)
    short, long = sorted(notes.size)
    if width * height > MOST_PIXELS:
        notes.refused = "too-large"
    elif long > MOST_ASPECT * short > 0:
        notes.refused = "absurd-aspect"
    elif 0 < short < SMALLEST_SIDE:
        notes.suspect += ("tiny",)
    return not notes.refused


def _look_at_jpeg(content: bytes, notes: _Notes) -> None:
    structure = jpeg.parse(content)
    if structure.frame and not _bounded(structure.width, structure.height, notes):
        return
    if structure.frame and not structure.supported:
        notes.refused = jpeg.UNSUPPORTED
        return
    if structure.too_many_segments or len(structure.scans) > MOST_SCANS:
        notes.refused = "too-many-segments"
        return
    if len(structure.scans) * structure.width * structure.height > MOST_SCAN_PIXELS:
        notes.refused = "too-many-scans"
        return
    pixel_bytes = 3 * structure.width * structure.height
    if pixel_bytes + structure.coefficient_bytes > LARGEST_DECODE:
        notes.refused = "too-large"
        return
    if len(structure.sampling) == 4:
        notes.flags += ("cmyk",)
    if 0 <= structure.end < len(content):
        notes.flags += ("trailing-bytes",)
    _flag_metadata(jpeg.exif(content, structure), jpeg.icc(content, structure), notes)
    decoded = jpeg.decode_strictly(content, structure)
    if decoded.reason == jpeg.UNSUPPORTED:
        notes.refused = decoded.reason
        return
    if decoded.pixels is None:
        notes.corrupt = decoded.reason
        return
    notes.suspect += decoded.oddities
    small = decoded.pixels
    notes.pixels = _pixel_hash("jpg", notes.size, [small.tobytes()])
    flat = small.reshape(-1, 3)
    # A few pixels tell nearly every image from a constant one, at no cost.
    if _varies_little(flat[:: 1 + len(flat) // 64]) and _varies_little(flat):
        notes.suspect += ("constant",)
        return
    tail = small[-max(1, round(len(small) * TAIL_FRACTION)) :]
    if int(tail.min()) >= _GREY[0] and int(tail.max()) <= _GREY[1]:
        notes.suspect += ("grey-tail",)


def _varies_little(pixels: jpeg.Pixels) -> bool:
    return int(np.ptp(pixels, axis=0).max()) <= _CONSTANT_SPREAD


def _look_at_png(content: bytes, notes: _Notes) -> None:
    structure = png.parse(content)
    if structure.width and not _bounded(structure.width, structure.height, notes):
        return
    if structure.reason:
        notes.corrupt = structure.reason
        return
    if structure.colour == 3:
        notes.flags += ("palette",)
    if structure.colour in (4, 6) or b"tRNS" in structure.other:
        notes.flags += ("alpha",)
    if structure.depth == 16:
        notes.flags += ("16-bit",)
    if b"acTL" in structure.other:
        notes.flags += ("animated",)
    if structure.end < len(content):
        notes.flags += ("trailing-bytes",)
    place = structure.other.get(b"eXIf")
    block = content[place[0] : place[1]] if place else None
    _flag_metadata(block, png.profile(content, structure), notes)
    if not png.inflates(content, structure):
        notes.corrupt = "damaged-data"
        return
    try:
        image = png.load(content)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises what it likes on hostile chunks
        if isinstance(error, ValueError) and _BOMB.search(str(error)):
            notes.refused = "too-large"
        else:
            notes.corrupt = "damaged-header"
        return
    notes.pixels = _pixel_hash(image.mode, notes.size, png.rows(image))
    if _spread(image) == 0:
        notes.suspect += ("constant",)
        return
    height = max(1, round(image.height * TAIL_FRACTION))
    tail = to_rgb(image.crop((0, image.height - height, image.width, image.height)))
    if all(_GREY[0] <= low and high <= _GREY[1] for low, high in _extrema(tail)):
        notes.suspect += ("grey-tail",)


def _spread(image: Image.Image) -> float:
    return max(high - low for low, high in _extrema(image))


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    found = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def _flag_metadata(exif: bytes | None, profile: bytes | None, notes: _Notes) -> None:
    if exif is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                block = Image.Exif()
                block.load(exif)
                orientation = block.get(_ORIENTATION, 1)
        except MemoryError:
            raise
        except Exception:  # a library's view of hostile metadata: any error means broken
            notes.flags += ("broken-exif",)
        else:
            if orientation != 1:
                notes.flags += ("exif-orientation",)
    if profile is not None:
        size = int.from_bytes(profile[:4], "big")
        if len(profile) < 128 or size != len(profile) or profile[36:40] != b"acsp":
            notes.flags += ("broken-icc",)


def _pixel_hash(kind: str, size: tuple[int, int], parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256(f"{kind} {size[0]} {size[1]}\n".encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def examine_item(item: Item) -> tuple[Examination, bytes]:
    """Read an image and examine it; return its bytes too, ``b""`` if they cannot be had."""
    if item.length > MOST_BYTES:
        return _unread("refused", "too-large"), b""
    try:
        content = read_item(item)
    except DataShardsError:
        return _unread("corrupt", "unreadable"), b""
    return examine(content, item.source), content


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
        plain, _ = jpeg.without_oddities(content, jpeg.parse(content))
        pixels = jpeg.decode(plain)
        height, width, _ = pixels.shape
        return _pixel_hash("jpg", (width, height), [pixels.data])
    except (ValueError, OSError, SyntaxError):
        return ""
