"""Which splits a folder or an address has."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from data_shards.format.manifest import MANIFEST_NAME
from data_shards.litter import children
from rebias_dist.config.data import is_address
from rebias_dist.data.ahead import in_a_thread
from rebias_dist.data.cache import MOST_MANIFEST
from rebias_dist.data.remote import MissingFileError, Store
from rebias_dist.errors import ConfigError

TRIED = (
    *("train", "selection", "test", "val", "valid", "validation", "dev"),
    *("biased", "unbiased", "rho0"),
)
"""Names of splits that are looked for at an address."""


def splits_in(root: str, names: Sequence[str] = TRIED) -> list[str]:
    """Return the names of the splits in a folder; at an address, those of ``names``. Sorted.

    A web server does not list its files, and a bucket may be readable without being listed. So at
    an address the manifest of each name is asked for.

    Raises:
        ConfigError: access to the address is denied, or a package is missing.
        RebiasError: the server does not answer.
    """
    if not is_address(root):
        return [path.parent.name for path in children(Path(root), f"*/{MANIFEST_NAME}")]
    return in_a_thread(lambda stopped: _answering(Store(root), names, stopped))


def _answering(store: Store, names: Sequence[str], stopped: threading.Event) -> list[str]:
    """Return the names below whose folders at an address there is a manifest."""
    found: list[str] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / MANIFEST_NAME
        for name in names:
            try:
                store.fetch(f"{name}/{MANIFEST_NAME}", path, stopped, most=MOST_MANIFEST)
            except MissingFileError:
                continue
            except ConfigError:
                # S3 denies access to a file that does not exist to those who may not list.
                if not found:
                    raise
                continue
            # Some web servers send a page in HTML instead of a 404.
            if path.read_bytes().startswith(b"{"):
                found.append(name)
    return sorted(found)
