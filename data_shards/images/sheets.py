"""Draw sheets of small pictures, to look at the images of a data set."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_shards.errors import DataShardsError
from data_shards.format.samples import FORMATS
from data_shards.images.colours import to_rgb

_GAP = 4  # pixels between pictures
_MARGIN = 16  # pixels between strips side by side
_LABEL = 24  # pixels of the height of a line of text
_FONT_SIZE = 15  # pixels
_FEW_STRIPS = 100  # with more the pictures are smaller
_SIDE, _SMALL_SIDE = 112, 64  # pixels of the square around a picture


@dataclass(frozen=True)
class Strip:
    """A label and the pictures below it; each is a JPEG or PNG file."""

    label: str
    images: Sequence[bytes]


def sheet(title: str, strips: Sequence[Strip], columns: int) -> bytes:
    """Return a PNG with a title and the strips, each with ``columns`` pictures in a row.

    Strips stand below each other, and side by side where that makes the page about square.
    DataShardsError, with the strip's label, if a picture cannot be decoded.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    side = _SIDE if len(strips) <= _FEW_STRIPS else _SMALL_SIDE
    step = side + _GAP
    most = max((len(strip.images) for strip in strips), default=0)
    columns = max(1, min(columns, most))
    words = max((int(font.getlength(strip.label)) for strip in strips), default=0)
    width = max(columns * step, words) + _MARGIN
    height = _LABEL + -(-most // columns) * step + _GAP
    across = max(1, round((len(strips) * height / width) ** 0.5))
    down = -(-len(strips) // across)
    page = Image.new(
        "RGB",
        (max(across * width, int(font.getlength(title))) + _MARGIN, _LABEL + down * height + _GAP),
        "white",
    )
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN // 2, _GAP), title, "black", font)
    for number, strip in enumerate(strips):
        # Fill the first column before the second.
        left = _MARGIN + number // down * width
        top = _LABEL + number % down * height
        draw.text((left, top + _GAP), strip.label, "black", font)
        for position, content in enumerate(strip.images):
            try:
                picture = _thumbnail(content, side)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataShardsError(
                    f"{strip.label}: an image cannot be drawn ({error})"
                ) from None
            page.paste(
                picture,
                (
                    left + position % columns * step + (side - picture.width) // 2,
                    top + _LABEL + position // columns * step + (side - picture.height) // 2,
                ),
            )
    stream = io.BytesIO()
    page.save(stream, "PNG")
    return stream.getvalue()


def _thumbnail(content: bytes, side: int) -> Image.Image:
    """Return the whole image in RGB, fitted into a square; small ones grow by a whole factor."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        opened.draft("RGB", (2 * side, 2 * side))
        image = to_rgb(opened)
    factor = side // max(image.size)
    if factor >= 1:
        return ImageOps.scale(image, factor, Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image
