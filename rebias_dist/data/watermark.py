"""The watermark of ImageNet-W: a shortcut that networks trained on ImageNet take.

Li et al., "A Whac-A-Mole Dilemma", CVPR 2023. Many of ImageNet's cartons carry a Chinese watermark,
and networks take it for one. ImageNet-W is the validation images with such a text on each of them.
The text, its place, size and opacity are those of the authors' code
(github.com/facebookresearch/Whac-A-Mole, ``imagenet_w/watermark_transform.py``), which draws it in
Source Han Serif SC, ExtraLight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rebias_dist.data.transforms import Transform
from rebias_dist.errors import ConfigError

TEXT = "捷径捷径捷径"
_LEFT, _TOP = 0.01, 0.4  # of the image's sides
_OPAQUE = 128  # of 255: half
_SIZES = {224: 36, 384: 62, 512: 82, 518: 84}  # of the font in pixels, by the image's width
_REST = 6.22  # width of other images by the size of the font
_NO_CHARACTER = "\uffff"  # every font draws its sign for a missing glyph


@dataclass(frozen=True)
class Watermarked:
    """A transform, and then the watermark of ImageNet-W on the image.

    Args:
        transform: the ordinary transform of evaluation.
        font: file of a font, as :func:`checked_font` returns it.
    """

    transform: Transform
    font: str

    def __call__(self, image: Tensor, *key: int) -> Tensor:
        """Return the transformed image with the watermark, uint8 [3, h, w]."""
        image = self.transform(image, *key)
        height, width = image.shape[-2:]
        below = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).convert("RGBA")
        marked = Image.alpha_composite(below, _mark(self.font, width, height)).convert("RGB")
        return torch.from_numpy(np.array(marked)).permute(2, 0, 1)


@lru_cache(maxsize=8)
def _mark(font: str, width: int, height: int) -> Image.Image:
    """Return the watermark on a transparent image of this size."""
    mark = Image.new("RGBA", (width, height), (255, 255, 255, 0))
    drawn = ImageFont.truetype(font, _SIZES.get(width) or max(1, int(width / _REST)))
    place = (_LEFT * width, _TOP * height)
    ImageDraw.Draw(mark).text(place, TEXT, fill=(255, 255, 255, _OPAQUE), font=drawn)
    return mark


def checked_font(path: str) -> str:
    """Return the path of a font that has the watermark's characters.

    Raises:
        ConfigError: it is no font, or lacks a character.
    """
    try:
        font = ImageFont.truetype(path, 36)
    except OSError as error:
        raise ConfigError(f"--watermark {path}: no font can be read ({error})") from None
    missing = bytes(font.getmask(_NO_CHARACTER))
    for character in sorted(set(TEXT)):
        if bytes(font.getmask(character)) in (b"", missing):
            raise ConfigError(
                f"--watermark {path}: the font has no {character}; the benchmark uses "
                "SourceHanSerifSC-ExtraLight.otf"
            )
    return path
