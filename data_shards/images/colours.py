"""Convert all kinds of pixels to RGB in one way."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB with 8 bits a channel; drops alpha and the lower 8 of 16 bits.

    Pillow itself would clip 16-bit values above 255 to white. It does so with 32 bits and floating
    point, which no JPEG, PNG or WebP has; a caller that opens other formats must refuse them.
    Raises what Pillow raises on images that it cannot decode.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
