"""The structure of a JPEG file, and what the strict decoder says of its pixels.

The decoder is libjpeg-turbo through simplejpeg, which raises on a warning too, but carries
the text of the first warning alone. A harmless oddity could thus hide damage behind it, so
the oddity is taken out and the rest has to decode without any warning.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]

MOST_SEGMENTS = 4096
UNSUPPORTED = "unsupported-jpeg"  # a reason: whole perhaps, but not what all decoders read
LONGEST_PADDING = 16  # zero bytes behind the coded data of a scan
FEW = 16  # bytes between segments that need no explanation

_SOI, _EOI, _SOS, _DNL = 0xD8, 0xD9, 0xDA, 0xDC
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_PROFILE = b"ICC_PROFILE\x00"
_METADATA = frozenset((*range(0xE0, 0xF0), 0xFE))
_RESTARTS = range(0xD0, 0xD8)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_USUAL_SAMPLING = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)})
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
# In entropy-coded data FF is followed by 00 (a data byte), a restart marker, or FF: filling
# before a marker.
_ENDS_DATA = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Tried where a run of zeros begins, or behind the one that belongs to an FF: from each zero on it
# would take the square of their number.
_TRAILING_ZEROS = re.compile(rb"(?:(?<![\x00\xff])|(?<=\xff\x00))\x00+\xff*\Z")

# The beginnings of warnings that leave the pixels whole, as libjpeg-turbo words them. They
# only decide whether a second look is worth while; the second decoding has the last word.
_HARMLESS = re.compile(
    r"Corrupt JPEG data: \d+ extraneous bytes before marker"
    r"|Warning: unknown JFIF revision number"
    r"|Invalid SOS parameters for sequential JPEG"
    r"|Unknown Adobe color transform code"
    r"|Corrupt JPEG data: bad ICC marker"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker with its payload: ``data[start:end]``, from its first FF to the next's.

    ``body`` is where the payload begins, behind marker and length. The entropy-coded data
    belong to the segment of their SOS, from ``coded`` on (otherwise ``end``).
    """

    marker: int
    start: int
    body: int
    coded: int
    end: int


@dataclass(slots=True)
class Structure:
    """What the markers say.

    ``end`` is the position behind the end marker, -1 if there is none. ``gaps`` are the
    stretches between segments that belong to none. ``frame`` is the first frame header, with
    the ids of its ``components`` and their ``sampling`` factors (horizontal, vertical);
    ``scans`` are the payloads of the scan headers.
    """

    segments: list[Segment] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    frame: Segment | None = None
    width: int = 0
    height: int = 0
    precision: int = 0
    components: bytes = b""
    sampling: tuple[tuple[int, int], ...] = ()
    scans: list[bytes] = field(default_factory=list)
    end: int = -1
    too_many_segments: bool = False

    @property
    def process(self) -> int:
        """The marker of the frame (0xC0: baseline, 0xC2: progressive), 0 without one."""
        return self.frame.marker if self.frame else 0

    @property
    def supported(self) -> bool:
        """Whether it is what all decoders read: 8 bits, Huffman-coded, not lossless."""
        return self.process in (*_SEQUENTIAL, _PROGRESSIVE) and self.precision == 8

    @property
    def unusual_sampling(self) -> bool:
        """Whether luminance and chrominance are in a proportion that cameras do not use."""
        return bool(self.sampling) and (
            self.sampling[0] not in _USUAL_SAMPLING or not set(self.sampling[1:3]) <= {(1, 1)}
        )

    @property
    def coefficient_bytes(self) -> int:
        """Memory for coefficients that the decoder holds all at once; 0 if it goes by rows."""
        together = bool(self.scans) and self.scans[0][:1] == bytes([len(self.sampling)])
        by_rows = self.process in _SEQUENTIAL and together
        if by_rows or not self.sampling:
            return 0
        widest = max(1, *(h for h, _ in self.sampling))
        highest = max(1, *(v for _, v in self.sampling))
        columns = -(-self.width // (8 * widest))
        rows = -(-self.height // (8 * highest))
        return sum(128 * columns * h * rows * v for h, v in self.sampling)


def parse(data: bytes) -> Structure:
    """Walk the markers of ``data``, which begins with FF D8, as the decoder will.

    Never raises: what is malformed ends the walk, and the decoder will have its say.
    """
    found = Structure()
    position = 2
    while True:
        if len(found.segments) == MOST_SEGMENTS:
            found.too_many_segments = True
            return found
        start = _find_marker(data, position)
        if start < 0:
            return found
        if start > position:
            found.gaps.append((position, start))
        body = start + 1
        while data[body] == 0xFF:
            body += 1
        marker = data[body]
        body += 1
        if marker == _EOI:
            found.segments.append(Segment(marker, start, body, body, body))
            found.end = body
            return found
        if marker == 0x01 or marker in _RESTARTS:
            found.segments.append(Segment(marker, start, body, body, body))
            position = body
            continue
        if marker == _SOI or body + 2 > len(data):
            return found
        end = body + int.from_bytes(data[body : body + 2], "big")
        if end < body + 2 or end > len(data):
            return found
        coded = end
        if marker == _SOS:
            found.scans.append(data[body + 2 : end])
            end = _data_end(data, coded)
        elif marker in _FRAMES and found.frame is None:
            _read_frame(data, body + 2, end, found)
            found.frame = Segment(marker, start, body + 2, coded, end)
        found.segments.append(Segment(marker, start, body + 2, coded, end))
        position = end


def _find_marker(data: bytes, position: int) -> int:
    """Return where the next marker begins (its first FF) outside coded data, or -1."""
    while True:
        start = data.find(b"\xff", position)
        if start < 0:
            return -1
        code = start + 1
        while code < len(data) and data[code] == 0xFF:
            code += 1
        if code >= len(data):
            return -1
        if data[code] != 0:
            return start
        position = code + 1


def _data_end(data: bytes, begin: int) -> int:
    """Return where the marker behind the entropy-coded data begins, or the file's end."""
    found = _ENDS_DATA.search(data, begin)
    if found is None:
        return len(data)
    end = found.start()
    while end > begin and data[end - 1] == 0xFF:
        end -= 1
    return end


def _read_frame(data: bytes, body: int, end: int, found: Structure) -> None:
    if end - body < 6:
        return
    found.precision, found.height, found.width, count = struct.unpack_from(">BHHB", data, body)
    if end - body >= 6 + 3 * count:
        found.components = data[body + 6 : body + 6 + 3 * count : 3]
        factors = [data[body + 7 + 3 * component] for component in range(count)]
        found.sampling = tuple((factor >> 4, factor & 15) for factor in factors)


def lacks_scans(structure: Structure) -> bool:
    """Say whether a component, a coefficient or its last bit is in no scan.

    The decoder does not mind: to it a progressive file that lost its last scans is whole.
    """
    # Of every coefficient of every component, the lowest bit that came; 0 is the last.
    lowest = {component: [13] * 64 for component in structure.components}
    for scan in structure.scans:
        count = scan[0] if scan else 0
        if len(scan) < 4 + 2 * count:
            return True
        first, last, low = 0, 63, 0
        if structure.process == _PROGRESSIVE:
            first, last, low = scan[-3], min(scan[-2], 63), scan[-1] & 15
        for component in scan[1 : 1 + 2 * count : 2]:
            if component in lowest and first <= last:
                lowest[component][first : last + 1] = [low] * (last + 1 - first)
    return any(any(bits) for bits in lowest.values())


def payloads(data: bytes, structure: Structure, marker: int, name: bytes) -> list[bytes]:
    """Return the payloads of all segments of ``marker`` that begin with ``name``, without it."""
    return [
        data[segment.body + len(name) : segment.coded]
        for segment in structure.segments
        if segment.marker == marker and data.startswith(name, segment.body, segment.coded)
    ]


def exif(data: bytes, structure: Structure) -> bytes | None:
    """Return the EXIF block of the file, None if it has none."""
    found = payloads(data, structure, _APP1, b"Exif\x00\x00")
    return found[0] if found else None


def icc(data: bytes, structure: Structure) -> bytes | None:
    """Return the colour profile, ``b""`` if its parts do not fit, None if there is none."""
    parts = payloads(data, structure, _APP2, _PROFILE)
    if not parts:
        return None
    if any(len(part) < 2 or part[1] != len(parts) for part in parts):
        return b""
    if [part[0] for part in parts] != list(range(1, len(parts) + 1)):
        return b""
    return b"".join(part[2:] for part in parts)


def _is_profile(data: bytes, segment: Segment) -> bool:
    return segment.marker == _APP2 and data.startswith(_PROFILE, segment.body, segment.coded)


@dataclass(frozen=True, slots=True)
class Decoded:
    """One pixel in 64 (RGB, [height/8, width/8, 3]), or None and why; ``oddities`` as codes."""

    pixels: Pixels | None
    reason: str = ""
    oddities: tuple[str, ...] = ()


def decode_strictly(data: bytes, structure: Structure) -> Decoded:
    """Decode all the entropy-coded data at an eighth of the size, allowing no warning.

    Warnings that leave the pixels whole become ``oddities``: the file decodes without any
    warning as soon as they are taken out of it. Raises MemoryError only.
    """
    oddities: tuple[str, ...] = ()
    try:
        pixels = _eighth(data)
    except ValueError as error:
        if not _HARMLESS.match(str(error)):
            return Decoded(None, _reason(str(error), structure))
        plain, oddities = without_oddities(data, structure)
        try:
            pixels = _eighth(plain)
        except ValueError as second:
            return Decoded(None, _reason(str(second), structure))
    if lacks_scans(structure):
        return Decoded(None, "missing-scan")
    return Decoded(pixels, oddities=oddities)


def decode(data: bytes) -> Pixels:
    """Return all the pixels, RGB [height, width, 3]; ValueError on any warning."""
    pixels: Pixels = simplejpeg.decode_jpeg(data)
    return pixels


def _eighth(data: bytes) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=1, min_width=1, min_factor=8)
    return pixels


def _reason(message: str, structure: Structure) -> str:
    if message.startswith("Insufficient memory"):
        raise MemoryError(message)
    if "Could not determine" in message and structure.unusual_sampling:
        return UNSUPPORTED
    if "Premature end of" in message:
        return "truncated"
    if message.startswith(("Corrupt JPEG data", "Inconsistent progression")):
        return "damaged-data" if structure.end >= 0 else "truncated"
    return "damaged-header"


def without_oddities(data: bytes, structure: Structure) -> tuple[bytes, tuple[str, ...]]:
    """Return the file without what draws a harmless warning, and the codes of what that was.

    Taken out are a FEW bytes between segments, and any number behind metadata, which then
    were longer than they said; up to LONGEST_PADDING zero bytes behind the coded data of a
    scan; a colour profile whose parts do not fit. Overwritten are fields that decoders ignore
    or replace: the JFIF revision, the spectral range of a sequential scan, an unknown Adobe
    colour transform.

    What else lies behind coded data stays, since it is a trace of damage in them, or a scan
    that lost its marker.
    """
    oddities = set()
    broken_profile = icc(data, structure) == b""
    removable = _removable(data, structure)
    pieces = [data[:2]]
    position = 2
    for segment in structure.segments:
        if segment.start > position:
            if removable.get(position):
                oddities.add("extraneous-bytes")
            else:
                pieces.append(data[position : segment.start])
        position = segment.end
        piece = data[segment.start : segment.end]
        if broken_profile and _is_profile(data, segment):
            oddities.add("broken-icc")
            continue
        plain, oddity = _plain(segment, piece, structure)
        if plain != piece:
            oddities.add(oddity)
        pieces.append(plain)
    pieces.append(data[position:])
    return b"".join(pieces), tuple(sorted(oddities))


def _removable(data: bytes, structure: Structure) -> dict[int, bool]:
    """Say of each gap, by where it begins, whether nothing that matters can be in it."""
    scan = next((s.start for s in structure.segments if s.marker == _SOS), len(data))
    behind = {segment.end: segment.marker for segment in structure.segments}
    return {
        begin: begin < scan
        # An Adobe segment decides the colours; without its marker it is a gap.
        and b"Adobe" not in data[begin:end]
        and (end - begin <= FEW or behind.get(begin, _APP0) in _METADATA)
        for begin, end in structure.gaps
    }


def _plain(segment: Segment, piece: bytes, structure: Structure) -> tuple[bytes, str]:
    """Return a segment without its oddity, if it has one, and that oddity's code."""
    body, coded = segment.body - segment.start, segment.coded - segment.start
    if segment.marker == _APP0 and piece.startswith(b"JFIF\x00", body) and coded - body >= 7:
        if piece[body + 5] != 1:
            return piece[: body + 5] + b"\x01\x01" + piece[body + 7 :], "jfif-revision"
    elif segment.marker == _APP14 and piece.startswith(b"Adobe", body) and coded - body >= 12:
        usual = {3: b"\x00\x01", 4: b"\x00\x02"}.get(len(structure.sampling), b"")
        if usual and piece[body + 11] not in usual:
            return piece[: body + 11] + usual[1:] + piece[body + 12 :], "adobe-transform"
    elif segment.marker == _SOS:
        parameters = piece[coded - 3 : coded]
        if structure.process in _SEQUENTIAL and parameters != b"\x00\x3f\x00":
            return piece[: coded - 3] + b"\x00\x3f\x00" + piece[coded:], "scan-parameters"
        zeros = _TRAILING_ZEROS.search(piece, coded)
        if zeros and zeros.end() - zeros.start() <= LONGEST_PADDING:
            return piece[: zeros.start()], "padded-scan"
    return piece, ""
