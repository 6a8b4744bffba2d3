"""Check the parts of a PNG file that Pillow does not, and decode it with Pillow.

Pillow skips the checksums of the image data, and does not notice an error after the last row.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from data_shards.images.unfit import UnfitError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 65_536

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column, first row, column step, row step of each pass of an interlaced image (Adam7).
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# Pillow's words for compressed text or a profile that would unpack to too much.
_BOMB = re.compile("too large|too much memory", re.IGNORECASE)


class Chunk(NamedTuple):
    """A part of the file: its name, its data, and the position after its checksum."""

    kind: bytes
    body: memoryview
    end: int


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of ``data``, which begins with the signature.

    UnfitError on a wrong checksum, without a header first, and without an end chunk.
    """
    position = len(SIGNATURE)
    for number in range(MOST_CHUNKS):
        length, kind = struct.unpack(">I4s", data[position : position + 8].ljust(8, b"\xff"))
        end = position + 12 + length
        if end > len(data):
            raise UnfitError("corrupt", "truncated")
        checked = memoryview(data)[position + 4 : end - 4]
        if zlib.crc32(checked) != int.from_bytes(data[end - 4 : end], "big"):
            raise UnfitError("corrupt", "damaged-data" if kind == b"IDAT" else "damaged-header")
        if (kind == b"IHDR") != (number == 0) or (number == 0 and length != 13):
            break
        yield Chunk(kind, checked[4:], end)
        if kind == b"IEND":
            return
        position = end
    raise UnfitError("corrupt", "damaged-header")


def check_stream(header: bytes, parts: Iterable[memoryview]) -> None:
    """Raise UnfitError unless the compressed image data are whole and of the right length.

    ``header`` is the body of the first chunk, ``parts`` those of the image data. Holds one
    block of the uncompressed data at a time.
    """
    width, height, depth, colour, *methods, interlaced = struct.unpack(">IIBBBBB", header)
    # Pillow would accept other methods, but other decoders do not.
    if any(methods) or interlaced > 1:
        raise UnfitError("corrupt", "damaged-header")
    bits = depth * _CHANNELS.get(colour, 0)
    expected = 0
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, lines = -(-(width - x) // dx), -(-(height - y) // dy)
        # A filter byte and whole bytes for each row.
        expected += lines * (1 + -(-columns * bits // 8)) if columns > 0 and lines > 0 else 0
    inflater = zlib.decompressobj()
    total = 0
    try:
        for part in parts:
            rest: bytes | memoryview = part
            while rest and not inflater.eof and total <= expected:
                total += len(inflater.decompress(rest, 2**18))
                rest = inflater.unconsumed_tail
    except zlib.error as error:
        raise UnfitError("corrupt", "damaged-data") from error
    if not inflater.eof or total != expected:
        raise UnfitError("corrupt", "damaged-data")


def load(data: bytes) -> PngImageFile:
    """Decode all the pixels with Pillow, in the file's own mode. UnfitError if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = PngImageFile(io.BytesIO(data))
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors on hostile chunks
        if isinstance(error, ValueError) and _BOMB.search(str(error)):
            raise UnfitError("refused", "too-large") from error
        raise UnfitError("corrupt", "damaged-header") from error
    if image.mode == "P" and image.palette is None:
        raise UnfitError("corrupt", "damaged-header")
    return image


def rows(image: Image.Image, height: int = 256) -> Iterator[bytes]:
    """Yield the raw pixels of ``image`` in strips of ``height`` rows, top to bottom.

    Those of a palette are looked up in it.
    """
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        yield (strip.convert("RGBA") if image.mode == "P" else strip).tobytes()
