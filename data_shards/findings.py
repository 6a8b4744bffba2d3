"""Verdicts on images and shards, in the terms that all commands share."""

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["ok", "suspect", "corrupt", "duplicate", "refused"]

# The verdict on an image that crashed its worker, and the reason, by the cause of the crash.
CRASHES: dict[str, tuple[Verdict, str]] = {
    "crashed": ("corrupt", "crashed-decoder"),
    "timeout": ("corrupt", "decoder-timeout"),
    "memory": ("refused", "too-large"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict on ``path`` with its reasons, which are short codes such as ``truncated``.

    ``ok``; ``suspect``: odd, but with all its pixels, so it is kept; ``corrupt``: damaged;
    ``duplicate``: the same bytes or pixels as another, kept; ``refused``: never opened
    (a link out of the source, a device) or not allowed (an absurd size). ``flags`` are facts
    that need no verdict, such as ``cmyk``; ``of`` is the path that a duplicate repeats.
    ``images`` is how many images ``path`` holds if it is a folder or an archive; 0 if nobody
    knows, because it was not read.
    """

    path: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    of: str = ""
    images: int = 1

    def to_json(self) -> str:
        """Return a line of JSON: ``path``, ``verdict``, ``reasons``, other fields if not empty."""
        content: dict[str, object] = {
            "path": self.path,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
        }
        if self.flags:
            content["flags"] = list(self.flags)
        if self.of:
            content["of"] = self.of
        if self.images != 1:
            content["images"] = self.images
        return json.dumps(content)

    def to_text(self) -> str:
        """Return one line for a person."""
        of = f" of {self.of}" if self.of else ""
        many = f" ({self.images:,} images)" if self.images > 1 else ""
        return f"{self.verdict:<9}  {self.path}: {', '.join(self.reasons)}{of}{many}"


def count_images(counts: Iterable[int]) -> float:
    """Return the sum of :attr:`Finding.images`; infinite if one of them is not known.

    So a limit never allows a folder of unknown content.
    """
    return sum(count or math.inf for count in counts)


def shown_count(counts: Collection[int]) -> str:
    """Return the sum of :attr:`Finding.images` for a message."""
    known, whole = sum(counts), sum(count == 0 for count in counts)
    if not whole:
        return f"{known:,}"
    noun = "whole folder or archive" if whole == 1 else "whole folders or archives"
    return f"{known:,} and {whole:,} {noun}" if known else f"{whole:,} {noun}"
