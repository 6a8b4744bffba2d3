"""Turn images of other formats into PNG files, which every reader of shards decodes."""

import io
import warnings

import PIL
from PIL import Image, UnidentifiedImageError, features

from data_shards.images.colours import to_rgb
from data_shards.images.examine import MOST_PIXELS, UNSUPPORTED
from data_shards.images.unfit import UnfitError

FORMATS = ("WebP", "BMP", "TIFF", "GIF")
_BEGINNINGS = (b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"GIF8")


def png_encoder() -> str:
    """Return the encoder and its version: only the same versions give the same bytes."""
    return f"Pillow {PIL.__version__}, zlib {features.version('zlib')}"


def as_png(content: bytes) -> bytes:
    """Return the first frame of an image of one of :data:`FORMATS` as a PNG file in RGB.

    Transparency is dropped, and the orientation in EXIF is ignored, as for other images. UnfitError
    if the image is of another format, too large or damaged.
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
