"""Decode a JPEG file strictly, and find the parts of it that no library reports.

The decoder is libjpeg-turbo through simplejpeg, which raises on a warning too, but reports
only the first warning. A harmless oddity could thus hide damage. So the oddities are taken
out, and the rest has to decode without any warning.
"""

import io
import re
import warnings
from typing import NamedTuple, TypeAlias

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from data_shards.images.unfit import UnfitError

Pixels: TypeAlias = NDArray[np.uint8]

MOST_SEGMENTS = 4096
LONGEST_PADDING = 16  # zero bytes after the coded data of a scan
FEW = 16  # bytes between segments that need no explanation

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_APP0, _APP2, _APP14, _COM = 0xE0, 0xE2, 0xEE, 0xFE
_PROFILE = b"ICC_PROFILE\x00"
_METADATA = frozenset((*range(0xE0, 0xF0), _COM))
_WITHOUT_PAYLOAD = frozenset((*range(0xD0, 0xD8), _EOI, _TEM))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_HEADER = _FRAMES | _METADATA | {_SOS}
# The sampling factors of luminance that libjpeg-turbo supports; those of chrominance are (1, 1).
_USUAL_SAMPLING = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)})
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# In coded data FF is followed by 00 (a data byte), a restart marker, or FF (filling before a
# marker).
_MARKER_AFTER_DATA = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class Segment(NamedTuple):
    """A marker with its payload: ``data[start:end]``, from its first FF to the next segment.

    ``body`` is where the payload begins, after marker and length. The entropy-coded data
    belong to the segment of their SOS and begin at ``coded`` (otherwise ``coded == end``).
    """

    marker: int
    start: int
    body: int
    coded: int
    end: int


def parse(data: bytes) -> list[Segment]:
    """Return the segments of ``data`` after its first two bytes, FF D8, as the decoder sees them.

    The list ends at a malformed segment, at the end marker, or after MOST_SEGMENTS segments.
    Never raises.
    """
    found: list[Segment] = []
    position, marker = 2, _SOI
    while len(found) < MOST_SEGMENTS and marker != _EOI:
        start, body = _find(_MARKER, data, position)
        if start == len(data):
            break
        marker = data[body - 1]
        coded = end = body
        if marker not in _WITHOUT_PAYLOAD:
            coded = end = body + int.from_bytes(data[body : body + 2], "big")
            body += 2
            if marker == _SOI or not body <= coded <= len(data):
                break
            if marker == _SOS:
                end, _ = _find(_MARKER_AFTER_DATA, data, coded)
        found.append(Segment(marker, start, body, coded, end))
        position = end
    return found


def _find(pattern: re.Pattern[bytes], data: bytes, position: int) -> tuple[int, int]:
    """Return where the next marker begins (its first FF) and ends, or twice the file's end."""
    found = pattern.search(data, position)
    if found is None:
        return len(data), len(data)
    start = found.start()
    if start > position and data[start - 1] == 0xFF:
        start = position + len(data[position:start].rstrip(b"\xff"))
    return start, found.end()


def end_of_image(segments: list[Segment]) -> int:
    """Return the position after the end marker, -1 if there is none."""
    return segments[-1].end if segments and segments[-1].marker == _EOI else -1


def scans(segments: list[Segment]) -> list[Segment]:
    """Return the segments that hold coded data."""
    return [segment for segment in segments if segment.marker == _SOS]


def _frame(segments: list[Segment]) -> Segment | None:
    return next((segment for segment in segments if segment.marker in _FRAMES), None)


def read_header(data: bytes, segments: list[Segment]) -> JpegImageFile:
    """Return the header as Pillow reads it; UnfitError if it is damaged or unsupported.

    Supported is what all decoders read: 8 bits a sample, Huffman-coded, not lossless. The
    pixels cannot be loaded from the returned object.
    """
    frame = _frame(segments)
    if frame and frame.marker not in (*_SEQUENTIAL, _PROGRESSIVE):
        raise UnfitError("refused", "unsupported-jpeg")
    end = next((scan.coded for scan in scans(segments)), len(data))
    # Give Pillow nothing from between the segments, which it would read byte by byte.
    head = [
        b"\xff" + data[segment.body - 3 : segment.coded]
        for segment in segments
        if segment.marker in _HEADER and segment.coded <= end
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return JpegImageFile(io.BytesIO(b"\xff\xd8" + b"".join(head)))
    except Exception as error:  # Pillow raises many kinds of errors on hostile segments
        if re.fullmatch("cannot handle .*-bit layers", str(error)):
            raise UnfitError("refused", "unsupported-jpeg") from error
        raise UnfitError("corrupt", "damaged-header") from error


def coefficient_bytes(header: JpegImageFile, segments: list[Segment]) -> int:
    """Return the memory for coefficients that the decoder holds all at once.

    0 if it decodes row by row: a sequential file with all components in its first scan.
    """
    first = next(iter(scans(segments)), None)
    together = first is None or first.coded - first.body == 4 + 2 * header.layers
    if together and "progressive" not in header.info:
        return 0
    largest = max(h for _, h, _, _ in header.layer) * max(v for _, _, v, _ in header.layer)
    samples = sum(h * v for _, h, v, _ in header.layer) * header.width * header.height
    return 2 * samples // max(1, largest)


def lacks_scans(data: bytes, header: JpegImageFile, segments: list[Segment]) -> bool:
    """Say whether a component, a coefficient or its last bit is in no scan.

    The decoder accepts a progressive file without its last scans as whole.
    """
    # For each coefficient of each component, the lowest bit seen so far; 0 is the last bit.
    lowest = {component: [13] * 64 for component, *_ in header.layer}
    for scan in scans(segments):
        first, last, low = 0, 63, 0
        if "progressive" in header.info:
            first, last, low = data[scan.coded - 3 : scan.coded]
        # An identifier and a table for each component.
        for component in data[scan.body + 1 : scan.coded - 3 : 2]:
            if component in lowest:
                lowest[component][first : last + 1] = [low & 15] * (last + 1 - first)
    return any(any(bits) for bits in lowest.values())


def decode_strictly(
    data: bytes, header: JpegImageFile, segments: list[Segment]
) -> tuple[Pixels, tuple[str, ...]]:
    """Decode all the coded data, allowing no warning.

    Returns the image at an eighth of its size (RGB, [height/8, width/8, 3]) and the codes of
    the oddities that had to be taken out. UnfitError if the image is damaged.
    """
    oddities: tuple[str, ...] = ()
    try:
        pixels = _eighth(data)
    except ValueError as error:
        plain, oddities = without_oddities(data, segments)
        if not oddities:
            raise _unfit(str(error), header, segments) from error
        try:
            pixels = _eighth(plain)
        except ValueError as second:
            raise _unfit(str(second), header, segments) from second
    if lacks_scans(data, header, segments):
        raise UnfitError("corrupt", "missing-scan")
    return pixels, oddities


def decode(data: bytes) -> Pixels:
    """Return all the pixels, RGB [height, width, 3]; ValueError on any warning."""
    pixels: Pixels = simplejpeg.decode_jpeg(data)
    return pixels


def _eighth(data: bytes) -> Pixels:
    # This reads all of the coded data, but leaves out most of the arithmetic.
    pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=1, min_width=1, min_factor=8)
    return pixels


def _unfit(message: str, header: JpegImageFile, segments: list[Segment]) -> UnfitError:
    """Translate a message of libjpeg-turbo."""
    if message.startswith("Insufficient memory"):
        return UnfitError("refused", "too-large")
    luminance, *chrominance = [(h, v) for _, h, v, _ in header.layer]
    usual = luminance in _USUAL_SAMPLING and set(chrominance[:2]) <= {(1, 1)}
    if "Could not determine" in message and not usual:
        return UnfitError("refused", "unsupported-jpeg")
    if "Premature end of" in message:
        return UnfitError("corrupt", "truncated")
    if message.startswith(("Corrupt JPEG data", "Inconsistent progression")):
        whole = end_of_image(segments) >= 0
        return UnfitError("corrupt", "damaged-data" if whole else "truncated")
    return UnfitError("corrupt", "damaged-header")


def without_oddities(data: bytes, segments: list[Segment]) -> tuple[bytes, tuple[str, ...]]:
    """Return the file without its oddities, which cause harmless warnings, and their codes.

    This removes up to FEW bytes between segments, any number of bytes after metadata (which
    then are longer than they say), up to LONGEST_PADDING zero bytes after the coded data of a
    scan, and a colour profile whose parts do not fit. It overwrites fields that decoders ignore
    or replace: the JFIF revision, the spectral range of a sequential scan, an unknown Adobe
    colour transform.

    Other bytes after coded data stay, because they are a trace of damage or a scan that lost
    its marker.
    """
    pieces, oddities = [data[:2]], set()
    # Bytes before the first segment count as bytes after metadata.
    before, in_header = Segment(_APP0, 0, 2, 2, 2), True
    broken_profile, frame = _broken_profile(data, segments), _frame(segments)
    for segment in segments:
        gap = data[before.end : segment.start]
        explained = len(gap) <= FEW or before.marker in _METADATA
        # An Adobe segment decides the colours; without its marker it is a gap.
        if gap and in_header and explained and b"Adobe" not in gap:
            oddities.add("extraneous-bytes")
        else:
            pieces.append(gap)
        if segment in broken_profile and in_header:
            plain, oddity = b"", "broken-icc"
        else:
            plain, oddity = _plain(data, segment, frame)
        oddities |= {oddity} - {""}
        pieces.append(plain)
        before, in_header = segment, in_header and segment.marker != _SOS
    pieces.append(data[before.end :])
    return b"".join(pieces), tuple(sorted(oddities))


def _broken_profile(data: bytes, segments: list[Segment]) -> set[Segment]:
    """Return the parts of a colour profile, none if they are numbered as they should be."""
    parts = [s for s in segments if s.marker == _APP2 and data.startswith(_PROFILE, s.body)]
    numbers = [tuple(data[s.body + len(_PROFILE) : s.coded][:2]) for s in parts]
    return set(parts if numbers != [(n + 1, len(parts)) for n in range(len(parts))] else ())


def _plain(data: bytes, segment: Segment, frame: Segment | None) -> tuple[bytes, str]:
    """Return a segment without its oddity, and that oddity's code (``""`` if it has none)."""
    marker, start, body, coded, end = segment
    payload = data[body:coded]
    if marker == _APP0 and payload.startswith(b"JFIF\x00") and len(payload) >= 7:
        if payload[5] != 1:
            return data[start : body + 5] + b"\x01\x01" + data[body + 7 : end], "jfif-revision"
    elif marker == _APP14 and payload.startswith(b"Adobe") and len(payload) >= 12 and frame:
        components = data[frame.body + 5 : frame.body + 6]
        usual = {b"\x03": b"\x00\x01", b"\x04": b"\x00\x02"}.get(components, b"")
        if usual and payload[11] not in usual:
            return data[start : body + 11] + usual[1:] + data[body + 12 : end], "adobe-transform"
    elif marker == _SOS:
        sequential = frame is not None and frame.marker in _SEQUENTIAL
        if sequential and payload[-3:] != b"\x00\x3f\x00":
            return data[start : coded - 3] + b"\x00\x3f\x00" + data[coded:end], "scan-parameters"
        padded = data[coded:end].rstrip(b"\xff")
        kept = padded.rstrip(b"\x00")
        kept += b"\x00" * kept.endswith(b"\xff")  # FF 00 is a data byte
        if 0 < len(padded) - len(kept) <= LONGEST_PADDING:
            return data[start:coded] + kept, "padded-scan"
    return data[start:end], ""
