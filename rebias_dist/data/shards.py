"""Random access to the samples of a split by memory-mapped index; nothing is unpickled."""

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_shards.errors import DataShardsError
from data_shards.manifest import HASH_BYTES, INDEX_NAME, Manifest, load_split
from rebias_dist.errors import ConfigError, DataError

# An epoch works on a window of shards; this many open files serve it and stay far below the
# usual limit of 1,024, which the 1,300 shards of ImageNet would break.
_OPEN_FILES = 64


class ShardDataset:
    """A split of shards: ``manifest``, ``labels`` and ``bias`` (int64 [n]), bytes and images.

    ``decoded`` counts the images decoded in this process. DataError if the manifest or the
    index is missing, malformed, or has a label outside the classes.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the split in ``folder``; the shards themselves are opened when read."""
        self.folder = Path(folder)
        try:
            self.manifest: Manifest
            self.manifest, self._index = load_split(self.folder)
        except DataShardsError as error:
            raise DataError(str(error)) from None
        self.labels: NDArray[np.int64] = self._index["label"].astype(np.int64)
        self.bias: NDArray[np.int64] = self._index["bias"].astype(np.int64)
        self.decoded = 0
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._index)

    def __reduce__(self) -> tuple[type["ShardDataset"], tuple[Path]]:
        """Travel to another process as a path: open files and memory maps do not."""
        return ShardDataset, (self.folder,)

    def __del__(self) -> None:
        """Close the shards."""
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def key(self, i: int) -> str:
        """Return the key of sample ``i``."""
        return bytes(self._index["key"][i]).decode(errors="replace")

    def read(self, i: int) -> bytes:
        """Return the image file of sample ``i``, checked against the hash in the index.

        DataError names the shard and the sample if it is missing, short or altered.
        """
        row = self._index[i]
        offset, length = int(row["offset"]), int(row["length"])
        try:
            # pread has no position to share: processes forked from this one may use the
            # same descriptors.
            content = os.pread(self._descriptor(int(row["shard"])), length, offset)
        except OSError as error:
            raise DataError(f"{self._place(i)}: cannot be read ({error.strerror})") from None
        if len(content) != length:
            raise DataError(f"{self._place(i)}: the shard is truncated")
        if hashlib.sha256(content).digest()[:HASH_BYTES] != bytes(row["hash"]):
            raise DataError(f"{self._place(i)}: altered since it was written (sha256 differs)")
        return content

    def image(self, i: int) -> Tensor:
        """Return sample ``i`` decoded to RGB, uint8 [3, H, W]; pixels unrotated whatever EXIF says.

        JPEG or PNG, told by content. DataError names the shard, the sample and the reason.
        """
        content = self.read(i)
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                pixels = np.array(image.convert("RGB"))
        except Exception as error:  # hostile bytes raise nearly anything inside a decoder
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self._place(i)}: cannot be decoded ({reason})") from None
        self.decoded += 1
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def check_files(self) -> None:
        """Check that the shards are readable files of their size, and the index's sha256.

        Cheap enough for every start (on one rank); DataError names the file.
        """
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            try:
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from None
            if size != shard.bytes:
                raise DataError(
                    f"{path}: has {size} bytes, its manifest says {shard.bytes}; "
                    f"remove {self.folder} and make it again"
                )
        path = self.folder / INDEX_NAME
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.manifest.index_sha256:
                raise DataError(f"{path}: is not the index its manifest was written with")

    def _descriptor(self, shard: int) -> int:
        descriptor = self._files.pop(shard, None)
        if descriptor is None:
            path = self.folder / self.manifest.shards[shard].name
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files[shard] = descriptor
        return descriptor

    def _place(self, i: int) -> str:
        shard = self.manifest.shards[int(self._index["shard"][i])]
        return f"{self.folder / shard.name}: sample {self.key(i)}"


def open_split(
    root: str | Path, split: str, *, dataset: str, classes: Sequence[str] | None = None
) -> ShardDataset:
    """Open ``root/split`` and check that it holds ``dataset`` (with these ``classes``, in order).

    ConfigError names what differs, or, for a folder that is missing, the command that makes
    it; DataError as for :class:`ShardDataset`.
    """
    folder = Path(root) / split
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: there are no shards here; see 'python -m data_shards --help' (and with "
            "several nodes: they must share this folder)"
        )
    opened = ShardDataset(folder)
    found = opened.manifest.dataset
    if found != dataset:
        raise ConfigError(f"{folder}: holds the data set {found!r}, not {dataset!r}")
    if classes is not None and tuple(classes) != opened.manifest.classes:
        raise ConfigError(
            f"{folder}: its classes {', '.join(opened.manifest.classes)} "
            f"are not {', '.join(classes)}"
        )
    return opened
