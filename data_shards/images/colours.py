"""One way from the many kinds of pixels to RGB, for whatever looks at images."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, 8 bits each: alpha is dropped, of 16 bits the upper 8 are kept.

    Of those, Pillow itself would clip what is above 255 to white. Raises what Pillow raises on
    images that it cannot decode.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
