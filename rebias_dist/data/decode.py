"""JPEG and PNG files to RGB pixels, by one of three decoders that give the same pixels.

The decoders differ in speed, and in what they take for damage: simplejpeg stops at every
warning of libjpeg-turbo, torchvision at some, Pillow at hardly any. All three bring
libjpeg-turbo and let it do the same, so for a whole file the pixels are equal to the bit.
"""

import importlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_shards.images.colours import to_rgb
from data_shards.images.examine import MOST_PIXELS
from rebias_dist.errors import ConfigError

DecoderName = Literal["simplejpeg", "torchvision", "pillow"]
_FASTEST_FIRST: tuple[DecoderName, ...] = ("simplejpeg", "torchvision", "pillow")
_MODULES = {"simplejpeg": "simplejpeg", "torchvision": "torchvision.io", "pillow": "PIL"}
_PLAIN = ("YCbCr", "RGB", "Gray")


class DecodeError(Exception):
    """The decoder stopped, or warned of something; one line."""


def choose_decoder(wanted: Literal["auto"] | DecoderName) -> DecoderName:
    """Return the decoder for ``wanted``: with ``auto`` the fastest that is installed.

    ConfigError if it is not installed.
    """
    for name in _FASTEST_FIRST if wanted == "auto" else (wanted,):
        try:
            importlib.import_module(_MODULES[name])
        except ImportError:
            continue
        return name
    raise ConfigError(
        f"data.decoder: {wanted} is not installed; pip install {wanted}, or use 'auto'"
    )


def describe_decoder(name: DecoderName) -> str:
    """Return the package that decodes and its version, for a run's record."""
    if name == "pillow":
        # pillow-simd lies in Pillow's folder and marks itself in the version alone.
        simd = "-simd" if "post" in PIL.__version__ else ""
        return f"pillow{simd} {PIL.__version__}"
    return f"{name} {importlib.metadata.version(name)}"


def decode(content: bytes, decoder: DecoderName) -> Tensor:
    """Return an image file as RGB, uint8 [3, H, W], pixels unrotated whatever EXIF says.

    A view of interleaved pixels, as decoders write them: resizing reads them faster than
    planes. What is not a plain 8-bit JPEG (CMYK, PNG of any kind) is decoded by Pillow,
    whatever the decoder, so that it is converted in one way: alpha is dropped, and of 16
    bits the upper 8 are kept. DecodeError if the decoder stops or complains.
    """
    try:
        pixels = None
        if decoder != "pillow" and content.startswith(b"\xff\xd8\xff"):
            pixels = _JPEG[decoder](content)
        if pixels is None:
            pixels = torch.from_numpy(_by_pillow(content))
    except Exception as error:  # hostile bytes raise nearly anything inside a decoder
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from None
    return pixels.permute(2, 0, 1)


def decode_leniently(content: bytes) -> Tensor:
    """Return the same, by Pillow, which passes over what libjpeg only warns of."""
    return decode(content, "pillow")


def _by_simplejpeg(content: bytes) -> Tensor | None:
    import simplejpeg  # type: ignore[import-untyped]

    height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    _check_size(width, height)
    # Of four inks it would make RGB in a way of its own.
    return torch.from_numpy(simplejpeg.decode_jpeg(content)) if colours in _PLAIN else None


def _by_torchvision(content: bytes) -> Tensor | None:
    from torchvision.io import decode_jpeg  # type: ignore[import-untyped]

    # Of broken metadata, and that the bytes are read-only: they are not written to.
    with warnings.catch_warnings(action="ignore"):
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:  # the header alone
            _check_size(*image.size)
        found: Tensor = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8))
    if len(found) == 4:
        return None
    return found.permute(1, 2, 0).expand(-1, -1, 3)


_JPEG: dict[DecoderName, Callable[[bytes], Tensor | None]] = {
    "simplejpeg": _by_simplejpeg,
    "torchvision": _by_torchvision,
}


def _by_pillow(content: bytes) -> NDArray[np.uint8]:
    with (
        warnings.catch_warnings(action="ignore"),
        Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image,
    ):
        _check_size(*image.size)
        return np.array(to_rgb(image))


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}")
