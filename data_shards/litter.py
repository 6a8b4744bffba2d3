"""Names that other programs leave beside data: hidden files, thumbnails, trash, snapshots."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

# In lower case. Synology, QNAP, NetApp, Windows, macOS, Linux.
_FOLDERS: Final = frozenset(
    {
        *("@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot"),
        *("@recycle", "@recently-snapshot", "~snapshot"),
        *("$recycle.bin", "recycler", "system volume information"),
        *("__macosx", "network trash folder", "temporary items", "lost+found"),
    }
)


def is_litter(name: str) -> bool:
    """Whether a file or a folder of this name is no data: it is hidden, or another program's."""
    return name.startswith(".") or name.lower() in _FOLDERS


def litter_in(parts: Iterable[str]) -> str:
    """Return the path to the first part that is litter, "" if there is none."""
    names = []
    for name in parts:
        names.append(name)
        if is_litter(name):
            return "/".join(names)
    return ""


def children(folder: Path, pattern: str) -> list[Path]:
    """Return what ``folder.glob(pattern)`` finds outside litter, sorted."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not litter_in(path.relative_to(folder).parts))


def count_litter(paths: Iterable[str]) -> str:
    """Return the names of such folders with how often each occurs, for a message."""
    names = Counter(path.rpartition("/")[2] for path in paths)
    return ", ".join(f"{name} ({count:,})" for name, count in sorted(names.items()))
