"""Treat one image as the options say: examine it, and make what is stored in its place."""

from dataclasses import replace
from typing import TypeAlias

from data_shards.convert.plan import Options
from data_shards.images.examine import UNSUPPORTED, Examination, examine, examine_item
from data_shards.images.reencode import as_png
from data_shards.images.resize import smaller
from data_shards.images.unfit import UnfitError
from data_shards.sources.listing import Item

REENCODED = "reencoded"  # the flag of an image that is stored as PNG


# A file that is stored in place of the source's, and its (width, height).
Made: TypeAlias = tuple[bytes, tuple[int, int]]


def treat(item: Item, options: Options) -> tuple[Examination, bytes, Made | None]:
    """Return the examination, also of the treatment; the file; what is stored instead, if any.

    The ``sha256`` of the examination is that of the source's file.
    """
    found, content = examine_item(item)
    made: Made | None = None
    if options.reencode and found.reasons == (UNSUPPORTED,):
        found, made = _reencoded(found, content)
    if options.resize is None or is_left_out(found, options):
        return found, content, made
    try:
        small = smaller(made[0] if made else content, options.resize, options.quality)
    except MemoryError:
        raise
    except Exception:  # Pillow may refuse what strict decoders accept, with any exception
        refused = replace(found, verdict="refused", reasons=("cannot-be-resized",), pixels="")
        return refused, content, None
    return found, content, small or made


def is_left_out(found: Examination, options: Options) -> bool:
    """Whether an image with this examination is not stored."""
    return found.verdict in ("corrupt", "refused") or (
        found.verdict == "suspect" and options.exclude_suspect
    )


def _reencoded(found: Examination, content: bytes) -> tuple[Examination, Made | None]:
    """Return the examination of an image as PNG, with the hash of its file, and the PNG."""
    try:
        content = as_png(content)
    except UnfitError as error:
        return replace(found, verdict=error.verdict, reasons=(error.reason,)), None
    # The ending of the source's name does not fit, so no name is given.
    png = examine(content, "")
    flags = (*png.flags, REENCODED)
    return replace(png, sha256=found.sha256, flags=flags), (content, png.size)
