"""JPEG, PNG and WebP files to RGB pixels, by one of three decoders that give the same pixels.

The decoders differ in speed and in strictness: simplejpeg stops at every warning of
libjpeg-turbo, torchvision at some, Pillow at hardly any. All three use libjpeg-turbo with the
same options, so for an undamaged file their pixels are equal to the bit.
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
from torchvision.io import decode_jpeg  # type: ignore[import-untyped]

from data_shards.format.samples import FORMATS
from data_shards.images.colours import to_rgb
from data_shards.images.examine import MOST_PIXELS
from rebias_dist.errors import ConfigError

DecoderName = Literal["simplejpeg", "torchvision", "pillow"]
_PLAIN = ("YCbCr", "RGB", "Gray")  # colour spaces, as simplejpeg names them


class DecodeError(Exception):
    """The decoder failed or warned; the message is one line."""


def choose_decoder(wanted: Literal["auto"] | DecoderName) -> DecoderName:
    """Return ``wanted``, or the fastest decoder that is installed for ``auto``.

    ConfigError if ``wanted`` is not installed.
    """
    if wanted == "torchvision" or wanted == "pillow":
        return wanted  # both are imported above
    try:
        importlib.import_module("simplejpeg")
    except ImportError:
        if wanted == "auto":
            return "torchvision"
        raise ConfigError(
            "data.decoder: simplejpeg is not installed; pip install simplejpeg, or use 'auto'"
        ) from None
    return "simplejpeg"


def describe_decoder(name: DecoderName) -> str:
    """Return the decoder's package and version, for a run's record."""
    if name == "pillow":
        # pillow-simd installs itself as PIL; only its version differs.
        simd = "-simd" if "post" in PIL.__version__ else ""
        return f"pillow{simd} {PIL.__version__}"
    return f"{name} {importlib.metadata.version(name)}"


def decode(content: bytes, decoder: DecoderName) -> Tensor:
    """Return an image file as RGB, uint8 [3, H, W]; the EXIF rotation is ignored.

    The result is a view of interleaved pixels, as decoders write them, because resizing reads
    these faster than planes. CMYK JPEGs, PNGs and WebP files are decoded by Pillow, whatever the
    decoder, so that there is only one conversion: alpha is dropped, 16-bit values keep their upper
    8 bits, and of an animation the first frame is taken. DecodeError if the decoder fails or warns.
    """
    try:
        pixels = None
        if decoder != "pillow" and content.startswith(b"\xff\xd8\xff"):
            pixels = _JPEG[decoder](content)
        if pixels is None:
            pixels = torch.from_numpy(_by_pillow(content))
    except Exception as error:  # hostile bytes can raise nearly anything inside a decoder
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from None
    return pixels.permute(2, 0, 1)


def decode_leniently(content: bytes) -> Tensor:
    """Decode with Pillow, which ignores most warnings of libjpeg-turbo; see :func:`decode`."""
    return decode(content, "pillow")


def _by_simplejpeg(content: bytes) -> Tensor | None:
    import simplejpeg  # type: ignore[import-untyped]  # here, so that the others work without it

    height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    _check_size(width, height)
    # Leave CMYK to Pillow: simplejpeg converts it differently.
    return torch.from_numpy(simplejpeg.decode_jpeg(content)) if colours in _PLAIN else None


def _by_torchvision(content: bytes) -> Tensor | None:
    # Pillow warns of broken metadata, torch of a read-only buffer, which nothing here writes to.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(*image.size)
            return np.array(to_rgb(image))


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}")
