"""A tiny MNIST in the official IDX format, made of random blots."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(
    folder: Path, *, train: int = 30, test: int = 20, seed: int = 0, zipped: bool = False
) -> dict[str, np.ndarray]:
    """Write the four files with ``train`` and ``test`` digits of each class; return the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", train), ("t10k", test)):
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), count))
        images = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        images[rng.random(images.shape) < 0.7] = 0
        arrays[f"{part}-images-idx3-ubyte"] = images
        arrays[f"{part}-labels-idx1-ubyte"] = labels
    for name, array in arrays.items():
        header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
        else:
            (folder / name).write_bytes(header + array.tobytes())
    return arrays


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
