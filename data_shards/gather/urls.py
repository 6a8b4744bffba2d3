"""Read the list of images to gather: one class and one address a line."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from data_shards.errors import UsageError
from data_shards.findings import Finding
from data_shards.ordering import derive

VAL = "val"

# A class becomes the name of a folder, so it must not be a path.
_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_IMAGE_ID = re.compile(r"(n\d{8})_\d+")  # ImageNet's lists name the image, n01440764_18
_LINE = re.compile(r"[\"']?([^\s,;\"']+)[\"']?\s*[\s,;]\s*[\"']?(\S.*?)[\"']?\s*")
_LONGEST_URL = 4096  # characters


@dataclass(frozen=True, slots=True)
class Task:
    """One image to fetch: its class and its address."""

    wnid: str
    url: str

    @property
    def name(self) -> str:
        """The file's name without extension: 96 bits of the address's sha256."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:24]

    def split(self, training: str, val_fraction: float) -> str:
        """Return ``training`` or ``val``; it depends only on the address, so it never changes."""
        return VAL if derive("gather", self.url) < val_fraction * 2**64 else training


def is_class_name(text: str) -> bool:
    """Whether ``text`` may name a class and hence a folder."""
    return _CLASS.fullmatch(text) is not None


def host_of(url: str) -> str:
    """Return the host of an http or https address in lower case, ``""`` for others."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return ""
    return host if parts.scheme in ("http", "https") else ""


def read_list(path: Path) -> tuple[list[Task], list[Finding]]:
    """Read lines ``wnid URL``, separated by white space, a comma or a semicolon.

    In ImageNet's own lists (``n01440764_18 http://…``) the image's number is dropped. Empty
    lines, lines that begin with ``#``, a header line and repetitions are skipped. A line that
    cannot be requested becomes a finding with the reason ``malformed-line``,
    ``class-name``, ``long-url`` or ``scheme`` (neither http nor https). UsageError if the
    list cannot be read or has nothing to fetch.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    tasks: dict[Task, None] = {}
    findings = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        line = raw.decode("utf-8", errors="surrogateescape").strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if number == 1 and found and "url" in found[2].lower() and not host_of(found[2]):
            continue
        reason = _refusal(found)
        if reason or not found:
            findings.append(Finding(f"{path}:{number}", "refused", (reason,)))
            continue
        image = _IMAGE_ID.fullmatch(found[1])
        tasks[Task(image[1] if image else found[1], found[2])] = None
    if not tasks:
        raise UsageError(f"{path}: has no line 'wnid URL' with an http or https address")
    return list(tasks), findings


def _refusal(found: re.Match[str] | None) -> str:
    if found is None:
        return "malformed-line"
    wnid, url = found.groups()
    if not is_class_name(wnid):
        return "class-name"
    if len(url) > _LONGEST_URL:
        return "long-url"
    if not url.isprintable():  # also bytes that are not UTF-8
        return "malformed-line"
    return "" if host_of(url) else "scheme"
