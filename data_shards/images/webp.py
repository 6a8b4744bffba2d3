"""Check the length of a WebP file, and decode it with Pillow."""

import io
import warnings

from PIL import Image

from data_shards.images.unfit import UnfitError

DECODED_BYTES = 12
"""Bytes for each pixel while libwebp decodes: two canvases, and Pillow's copy of one of them."""

_HEAD = 12  # bytes: "RIFF", the length of what follows the first 8 bytes, "WEBP"


def is_webp(content: bytes) -> bool:
    """Return whether ``content`` begins as a WebP file."""
    return content.startswith(b"RIFF") and content[8:_HEAD] == b"WEBP"


def end_of_image(content: bytes) -> int:
    """Return where the file ends by its own header, in bytes."""
    return 8 + int.from_bytes(content[4:8], "little")


def opened(content: bytes) -> Image.Image:
    """Return the image with its size, not decoded yet; UnfitError if it is cut or malformed."""
    if end_of_image(content) > len(content):
        raise UnfitError("corrupt", "truncated")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content), formats=("WEBP",))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors on hostile bytes
        raise UnfitError("corrupt", "damaged-header") from error


def load(image: Image.Image) -> Image.Image:
    """Decode the first frame of such an image; UnfitError if libwebp cannot."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # as in opened()
        raise UnfitError("corrupt", "damaged-data") from error
    return image
