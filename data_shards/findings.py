"""Verdicts on images and shards, in the terms that all commands share."""

import json
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
    """

    path: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    of: str = ""

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
        return json.dumps(content)

    def to_text(self) -> str:
        """Return one line for a person."""
        of = f" of {self.of}" if self.of else ""
        return f"{self.verdict:<9}  {self.path}: {', '.join(self.reasons)}{of}"
