"""Random access to the samples of a split through a memory-mapped index, without unpickling."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from data_shards.errors import DataShardsError
from data_shards.format.manifest import (
    ATTRIBUTES_NAME,
    HASH_BYTES,
    INDEX_NAME,
    NO_BIAS,
    Manifest,
    load_split,
)
from data_shards.sources.datasets import SUMMARIES
from data_shards.system.files import open_regular, regular_descriptor, sha256_of
from rebias_dist.config.data import CACHE_GB, is_address
from rebias_dist.data.ahead import Ahead, in_a_thread
from rebias_dist.data.bias import Values, bias_labels, numbered
from rebias_dist.data.cache import GB, Cache
from rebias_dist.data.decode import (
    DecodeError,
    DecoderName,
    choose_decoder,
    decode,
    decode_leniently,
)
from rebias_dist.data.remote import MissingFileError, Store
from rebias_dist.data.split_names import splits_in
from rebias_dist.errors import ConfigError, DataError, RebiasError

# An epoch reads from a window of a few shards, so this many open files suffice. ImageNet's 1,300
# shards would exceed the usual limit of 1,024.
_OPEN_FILES = 64
_MOST_VALUES = 100_000  # of a bias; tables of class and bias have a column for each
R = TypeVar("R")


class DamagedSample(DataError):  # noqa: N818 - not always an error: the loader may replace it
    """One sample differs from what was written; the others in its shard can still be read."""


class ShardDataset:
    """A split of shards: ``manifest``, ``labels`` and ``bias`` (int32 [n]), bytes and images.

    ``bias`` has the ids of the values of one attribute (-1: none), named by ``values``.

    ``decoded`` counts the images decoded in this process. DataError if the manifest or the
    index is missing, malformed, or has a label outside the classes.

    ``place`` is where the split lies, a folder or an address. ``folder`` has its manifest and its
    index; for an address it is in the cache of this host.
    """

    def __init__(
        self,
        place: str | Path,
        decoder: DecoderName | None = None,
        bias: str | Values | None = None,
        cache_gb: float = CACHE_GB,
    ) -> None:
        """Open the split in ``place``; the shards themselves are opened when read.

        ``decoder`` of :mod:`rebias_dist.data.decode`; None is the fastest that is installed.
        ``bias`` is the attribute that is the bias, see :func:`.bias_labels`; ConfigError if there
        is none of this name. ``cache_gb``: gigabytes that fetched shards may take, if ``place`` is
        an address. Then the errors are also those of :meth:`rebias_dist.data.remote.Store.fetch`.
        """
        self.place = str(place)
        self._cache_gb = cache_gb
        self._elsewhere: tuple[Cache, Store] | None = None
        if is_address(self.place):
            cache, store = Cache(int(cache_gb * GB)), Store(self.place)
            self._elsewhere = cache, store
            self.folder = in_a_thread(lambda stopped: cache.split(store, stopped))
        else:
            self.folder = Path(place)
        self.decoder = decoder or choose_decoder("auto")
        try:
            self.manifest: Manifest
            self.manifest, self._index = load_split(self.folder)
            # Views of the mapped index, not copies, so that workers share ImageNet's index.
            self.labels: NDArray[np.int32] = self._index["label"]
            self.bias: NDArray[np.int32]
            self.bias, self._values = bias_labels(self.folder, self.manifest, self._index, bias)
        except DataShardsError as error:
            raise DataError(str(error)) from None
        self.decoded = 0
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._index)

    def __reduce__(self) -> tuple[type["ShardDataset"], tuple[str, DecoderName, Values, float]]:
        """Pickle the path alone: open files and memory maps cannot be sent to another process."""
        return ShardDataset, (self.place, self.decoder, self._values, self._cache_gb)

    @cached_property
    def values(self) -> Values:
        """Return the attribute that is the bias, and the names of the values of ``bias``."""
        largest = int(self.bias.max(initial=NO_BIAS))
        if largest >= _MOST_VALUES:
            raise DataError(
                f"{self.folder / INDEX_NAME}: has the bias {largest}; the largest that a run takes "
                f"is {_MOST_VALUES - 1}"
            )
        return Values(self._values.attribute, numbered(self._values, self.bias))

    def __del__(self) -> None:
        """Close the shards."""
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def key(self, i: int) -> str:
        """Return the key of sample ``i``."""
        return bytes(self._index["key"][i]).decode(errors="replace")

    def read(self, i: int, *, verify: bool = True) -> bytes:
        """Return the image file of sample ``i``; with ``verify`` its hash is checked.

        DamagedSample if the content differs from its hash; DataError if the shard is missing, too
        short or unreadable.
        """
        row = self._index[i]
        offset, length = int(row["offset"]), int(row["length"])
        try:
            # pread uses no file position, so forked processes may share the descriptors.
            with self._opened(int(row["shard"])) as descriptor:
                content = os.pread(descriptor, length, offset)
        except OSError as error:
            raise DataError(f"{self._place(i)}: cannot be read ({error.strerror})") from None
        if len(content) != length:
            raise DataError(f"{self._place(i)}: the shard is truncated")
        if verify:
            self._verify(i, content)
        return content

    def image(self, i: int, *, verify: bool = True) -> Tensor:
        """Return sample ``i`` decoded to RGB, uint8 [3, H, W]; the EXIF rotation is ignored.

        DamagedSample if it cannot be decoded; otherwise the errors of :meth:`read`.
        """
        content = self.read(i, verify=verify)
        try:
            try:
                pixels = decode(content, self.decoder)
            except DecodeError:
                # A file that had an oddity when it was written has the right hash; Pillow
                # decodes it. With a wrong hash it is damaged.
                if not verify:
                    self._verify(i, content)
                pixels = decode_leniently(content)
        except DecodeError as error:
            raise DamagedSample(f"{self._place(i)}: cannot be decoded ({error})") from None
        self.decoded += 1
        return pixels

    def sound_images(self) -> Iterator[Tensor]:
        """Yield the images in the order of the index, without the damaged ones."""
        for i in range(len(self)):
            try:
                image = self.image(i)
            except DamagedSample:
                continue
            yield image

    def _verify(self, i: int, content: bytes) -> None:
        if hashlib.sha256(content).digest()[:HASH_BYTES] != bytes(self._index["hash"][i]):
            raise DamagedSample(f"{self._place(i)}: altered since it was written (sha256 differs)")

    def check_files(self) -> None:
        """Check that every shard is a file of the recorded size, and the SHA-256 of the tables.

        This is cheap enough for every start (on one rank). DataError names the file. At an address
        there is nothing to check: what is fetched has its SHA-256.
        """
        if self._elsewhere is not None:
            return
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            try:
                with open_regular(path) as file:
                    size = os.fstat(file.fileno()).st_size
            except DataShardsError as error:
                raise DataError(str(error)) from None
            if size != shard.bytes:
                raise DataError(
                    f"{path}: has {size} bytes, but its manifest says {shard.bytes}; "
                    f"remove {self.folder} and make it again"
                )
        for name, expected in (
            (INDEX_NAME, self.manifest.index_sha256),
            (ATTRIBUTES_NAME, self.manifest.files.get(ATTRIBUTES_NAME)),
        ):
            if expected is None:
                continue
            path = self.folder / name
            try:
                with open_regular(path) as file:
                    digest = sha256_of(file)
            except DataShardsError as error:
                raise DataError(str(error)) from None
            if digest != expected:
                what = "index" if name == INDEX_NAME else "table of attributes"
                raise DataError(f"{path}: is not the {what} that its manifest was written with")

    def ahead(
        self, requests: Iterable[R], samples_of: Callable[[R], NDArray[np.int64]], most: int
    ) -> Ahead[R] | None:
        """Return the requests, each yielded when its shards are fetched; None if all are here.

        ``samples_of(request)`` are the samples that it needs; ``most`` is the number of shards to
        fetch ahead.
        """
        if self._elsewhere is None:
            return None

        def shards_of(request: R) -> list[int]:
            found: list[int] = np.unique(self._index["shard"][samples_of(request)]).tolist()
            return found

        return Ahead(requests, shards_of, self.manifest.shards, *self._elsewhere, most)

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        """Yield a descriptor of a shard; one at an address is fetched if it is not here."""
        if self._elsewhere is None:
            yield self._descriptor(shard)
            return
        # Not kept open: then its space would not be free when it is removed.
        (cache, store), wanted = self._elsewhere, self.manifest.shards[shard]
        descriptor = cache.hold(wanted)
        if descriptor is None and get_worker_info() is None:
            descriptor = in_a_thread(lambda stopped: cache.get(wanted, store, stopped))
        elif descriptor is None:  # a worker needs it only to replace a damaged sample
            descriptor = cache.get(wanted, store, threading.Event())
        try:
            yield descriptor
        finally:
            cache.let_go(descriptor)

    def _descriptor(self, shard: int) -> int:
        descriptor = self._files.pop(shard, None)
        if descriptor is None:
            path = self.folder / self.manifest.shards[shard].name
            descriptor = regular_descriptor(path)
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files[shard] = descriptor
        return descriptor

    def _place(self, i: int) -> str:
        shard = self.manifest.shards[int(self._index["shard"][i])]
        return f"{self.place}/{shard.name}: sample {self.key(i)}"


def root_and_split(place: str) -> tuple[str, str]:
    """Return the folder or the address above that of a split, and the split's name."""
    if not is_address(place):  # of /val the folder is /, and not the working folder
        return str(Path(place).parent), Path(place).name
    root, _, split = place.rpartition("/")
    return root, split


def open_split(
    root: str | Path,
    split: str,
    *,
    dataset: str | None = None,
    classes: Sequence[str] | None = None,
    decoder: DecoderName | None = None,
    bias: str | Values | None = None,
    cache_gb: float = CACHE_GB,
) -> ShardDataset:
    """Open ``root/split`` and check its data set and its classes, in order, where they are given.

    ConfigError if they differ or if the folder is missing (it names the splits that are there, and
    the command that makes the folder); other errors as for :class:`ShardDataset`.
    """
    folder = f"{root}/{split}" if is_address(str(root)) else str(Path(root) / split)
    if not is_address(folder) and not Path(folder).is_dir():
        raise ConfigError(
            f"{folder}: there are no shards here{_others(root, split)}; make them with "
            f"'{_command(dataset, split, root)}' (all nodes of a run must share this folder)"
        )
    try:
        opened = ShardDataset(folder, decoder, bias, cache_gb)
    except MissingFileError as error:
        raise DataError(f"{error}{_others(root, split)}") from None
    found = opened.manifest.dataset
    if dataset is not None and found != dataset:
        raise ConfigError(f"{folder}: holds the data set {found!r}, not {dataset!r}")
    theirs = opened.manifest.classes
    if classes is not None and tuple(classes) != theirs:
        pairs = zip_longest(theirs, classes, fillvalue="none")
        label, (one, other) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        cure = ""
        if set(theirs) <= set(classes):
            cure = (
                "; to test a trained run on these classes alone, use "
                f"'rebias-evaluate RUN --on {folder}'"
            )
        raise ConfigError(
            f"{folder}: its {len(theirs)} classes are not the {len(classes)} of the training "
            f"data; label {label} is {one}, not {other}{cure}"
        )
    return opened


def _others(root: str | Path, split: str) -> str:
    """Return the end of a message that a split is missing: those that are there."""
    with suppress(RebiasError):  # the message matters more
        if found := splits_in(str(root)):
            there = f"; {root} has {', '.join(found)}"
            if split == "selection":
                return f"{there} (data.selection none does without)"
            return f"{there} (data.train_split and data.test_splits name those to use)"
    return ""


def _command(dataset: str | None, split: str, root: str | Path) -> str:
    convert = "python -m data_shards convert"
    if dataset == "biased_mnist":
        return f"{convert} biased-mnist --output {root}"
    if dataset is None:
        name = "DATASET"
    else:
        name = dataset if dataset in SUMMARIES else f"folder --name {dataset} --classes FILE"
    return f"{convert} {name} --source PATH --split {split} --output {root}"
