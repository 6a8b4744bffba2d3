"""Turn images of other formats into PNG files, which every reader of shards decodes."""

import io
import warnings

import PIL
from PIL import Image, UnidentifiedImageError, features
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    YCBCRSUBSAMPLING,
    TiffImageFile,
)

from data_shards.images.colours import to_rgb
from data_shards.images.examine import MOST_PIXELS, UNSUPPORTED
from data_shards.images.unfit import UnfitError

FORMATS = ("WebP", "BMP", "TIFF", "GIF")
_BEGINNINGS = (b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"GIF8")
# Pillow's modes of TIFFs that become RGB without loss of their range. The range of others is not
# known: "I" has 32 bits, or 16 with a sign, and "F" has floating point.
_TIFF_MODES = frozenset(
    ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B")
)
_UNSIGNED, _WHITE_IS_ZERO, _IN_PLANES, _NOT_COMPRESSED = 1, 0, 2, 1  # values of a TIFF's tags


def png_encoder() -> str:
    """Return the encoder and its version: only the same versions give the same bytes."""
    return f"Pillow {PIL.__version__}, zlib {features.version('zlib')}"


def as_png(content: bytes) -> bytes:
    """Return the first frame of an image of one of :data:`FORMATS` as a PNG file in RGB.

    Transparency is dropped, and the orientation in EXIF is ignored, as for other images. UnfitError
    if the image is of another format, too large or damaged, or a TIFF whose values have no known
    range.
    """
    if not content.startswith(_BEGINNINGS):
        raise UnfitError("refused", UNSUPPORTED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=[name.upper() for name in FORMATS])
            # The header is read, the pixels are not.
            if image.width * image.height > MOST_PIXELS:
                raise UnfitError("refused", "too-large")
            if isinstance(image, TiffImageFile) and not _has_known_range(image):
                raise UnfitError("refused", "unsupported-tiff")
            pixels = to_rgb(image)
    except (MemoryError, UnfitError):
        raise
    except UnidentifiedImageError as error:
        raise UnfitError("corrupt", "damaged-header") from error
    except Image.DecompressionBombError as error:
        raise UnfitError("refused", "too-large") from error
    except Exception as error:  # Pillow raises many kinds of errors on damaged files
        raise UnfitError("corrupt", "damaged-data") from error
    stream = io.BytesIO()
    pixels.save(stream, "PNG")
    return stream.getvalue()


def _has_known_range(image: TiffImageFile) -> bool:
    """Return whether black and white of a TIFF are known, and Pillow decodes it as it is meant."""
    tags = image.tag_v2
    if image.mode not in _TIFF_MODES or set(tags.get(SAMPLEFORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        return False
    is_raw = tags.get(COMPRESSION, _NOT_COMPRESSED) == _NOT_COMPRESSED
    in_planes = tags.get(PLANAR_CONFIGURATION) == _IN_PLANES
    if image.mode == "YCbCr" and is_raw:
        # Pillow reads a colour for each pixel, though four share one by default.
        return bool(tags.get(YCBCRSUBSAMPLING) == (1, 1))
    if image.mode == "LAB":
        return not in_planes  # where Pillow takes the signs of a and b wrongly
    bits = max(tags.get(BITSPERSAMPLE, (1,)))
    if bits <= 8:
        return True
    # Pillow gives 12 bits as the lower of 16, does not turn white and black round, and reads planes
    # that are not compressed as if they had 8 bits.
    is_turned = tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    return bits == 16 and not is_turned and not (in_planes and is_raw)
