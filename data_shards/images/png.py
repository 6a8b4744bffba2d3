"""The structure of a PNG file and its pixels.

Pillow decodes the pixels but skips the checksums of the image data, and an error behind the
last row goes unseen; so chunks, checksums and the compressed stream are checked here.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 65_536

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# Adam7: first column, first row, column step, row step of each pass.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_LARGEST_PROFILE = 4 * 2**20


@dataclass(slots=True)
class Structure:
    """What the chunks say. ``reason`` is why the file is damaged, ``""`` if it is not.

    ``image`` are the stretches of compressed image data, ``end`` the position behind the
    last chunk.
    """

    width: int = 0
    height: int = 0
    depth: int = 0
    colour: int = 0
    interlaced: bool = False
    image: list[tuple[int, int]] = field(default_factory=list)
    other: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    end: int = 0
    reason: str = ""

    @property
    def stream_bytes(self) -> int:
        """Bytes of the uncompressed image data, with a filter byte for each row."""
        bits = self.depth * _CHANNELS[self.colour]
        passes = _PASSES if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for x, y, dx, dy in passes:
            columns, rows = -(-(self.width - x) // dx), -(-(self.height - y) // dy)
            if columns > 0 and rows > 0:
                total += rows * (1 + -(-columns * bits // 8))
        return total


def parse(data: bytes) -> Structure:
    """Walk the chunks of ``data``, which begins with the signature. Never raises."""
    found = Structure()
    position = len(SIGNATURE)
    for number in range(MOST_CHUNKS):
        if position + 12 > len(data):
            found.reason = "truncated"
            return found
        length, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        end = body + length
        if end + 4 > len(data):
            found.reason = "truncated"
            return found
        view = memoryview(data)[position + 4 : end]
        if zlib.crc32(view) != int.from_bytes(data[end : end + 4], "big"):
            found.reason = "damaged-data" if kind == b"IDAT" else "damaged-header"
            return found
        if number == 0 and not _read_header(data, kind, body, length, found):
            found.reason = "damaged-header"
            return found
        if kind == b"IDAT":
            found.image.append((body, end))
        elif kind == b"IEND":
            found.end = end + 4
            lacks_palette = found.colour == 3 and b"PLTE" not in found.other
            found.reason = "damaged-header" if lacks_palette or not found.image else ""
            return found
        else:
            found.other.setdefault(kind, (body, end))
        position = end + 4
    found.reason = "damaged-header"
    return found


def _read_header(data: bytes, kind: bytes, body: int, length: int, found: Structure) -> bool:
    if kind != b"IHDR" or length != 13:
        return False
    width, height, depth, colour, method, filtering, interlace = struct.unpack_from(
        ">IIBBBBB", data, body
    )
    if not (width and height and depth in _DEPTHS.get(colour, ())):
        return False
    if method or filtering or interlace > 1:
        return False
    found.width, found.height = width, height
    found.depth, found.colour, found.interlaced = depth, colour, interlace == 1
    return True


def inflates(data: bytes, structure: Structure) -> bool:
    """Say whether the compressed image data are whole and of the right length.

    Holds one block of the stream at a time.
    """
    inflater = zlib.decompressobj()
    total = 0
    try:
        for begin, end in structure.image:
            rest: bytes = data[begin:end]
            while rest and not inflater.eof:
                total += len(inflater.decompress(rest, 2**18))
                rest = inflater.unconsumed_tail
            if total > structure.stream_bytes:
                return False
    except zlib.error:
        return False
    return inflater.eof and total == structure.stream_bytes


def profile(data: bytes, structure: Structure) -> bytes | None:
    """Return the colour profile, ``b""`` if it cannot be unpacked, None if there is none."""
    place = structure.other.get(b"iCCP")
    if place is None:
        return None
    name, _, packed = data[place[0] : place[1]].partition(b"\x00")
    if not name or not packed:
        return b""
    inflater = zlib.decompressobj()
    try:
        unpacked = inflater.decompress(packed[1:], _LARGEST_PROFILE)
    except zlib.error:
        return b""
    return unpacked if inflater.eof else b""


def load(data: bytes) -> Image.Image:
    """Decode all the pixels with Pillow, in the file's own mode; its errors pass through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    return image


def rows(image: Image.Image, height: int = 256) -> Iterator[bytes]:
    """Yield the raw pixels of ``image`` in strips of ``height`` rows, top to bottom.

    Those of a palette are looked up in it.
    """
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        yield (strip.convert("RGBA") if image.mode == "P" else strip).tobytes()
