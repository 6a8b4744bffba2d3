"""Make smaller copies of images, for shards that load faster and take less space."""

import io
import warnings

import PIL
from PIL import Image, features

from data_shards.images.colours import to_rgb


def encoder() -> str:
    """Return the encoder and its version: only the same versions give the same bytes."""
    return f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"


def smaller(content: bytes, short_side: int, quality: int) -> tuple[bytes, tuple[int, int]] | None:
    """Return a JPEG (RGB, bicubic) with the given short side in pixels, and its size.

    None if the image is not larger than that. The orientation in EXIF is ignored.
    Raises what Pillow raises on images that it cannot decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image: Image.Image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        width, height = image.size
        if min(width, height) <= short_side:
            return None
        scale = short_side / min(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        # Decode a JPEG at a half, a quarter or an eighth, but at twice the wanted size or more.
        image.draft("RGB", (2 * size[0], 2 * size[1]))
        image = to_rgb(image).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue(), size
