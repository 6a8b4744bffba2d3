"""Cluster images by texture: Gram matrices of a convolutional layer, mini-batch k-means.

The Gram matrix of a layer's activations has the products of its channels, summed over all
places. It keeps which patterns occur together, but not where (Gatys, Ecker & Bethge, 2015).
torch and scikit-learn are imported by the functions that need them.
"""

from __future__ import annotations

import difflib
import io
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import Manifest, load_split
from data_shards.format.samples import FORMATS, read_image
from data_shards.images.colours import to_rgb
from data_shards.sources.listing import IMAGENET_NORMALIZE
from data_shards.system.processes import end_with_parent

if TYPE_CHECKING:
    from torch import Tensor, nn

RESIZE = 256  # pixels of the short side
CROP = 224  # pixels of the central square
_CHUNK = 8  # images that a worker takes at a time
_BATCH = 1024  # rows of one k-means update
_VGG16 = {  # published names of the layers that come before each ReLU
    f"conv{block}_{number}": f"features.{position}"
    for block, number, position in [
        (1, 1, 0), (1, 2, 2), (2, 1, 5), (2, 2, 7), (3, 1, 10), (3, 2, 12), (3, 3, 14),
        (4, 1, 17), (4, 2, 19), (4, 3, 21), (5, 1, 24), (5, 2, 26), (5, 3, 28),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer of a torchvision network, and the file of its weights (a plain state dict)."""

    network: str
    layer: str
    weights: Path

    @property
    def module(self) -> str:
        """The layer's name in the network; ``conv3_3`` and so on are names of VGG-16's layers."""
        return _VGG16.get(self.layer, self.layer) if self.network == "vgg16" else self.layer


class Textures:
    """Gram features of images, one image at a time, so that batching cannot change their bits."""

    def __init__(self, layer: Layer) -> None:
        """Build the network; UsageError if the layer or fitting weights do not exist."""
        import torch

        self._layer = layer
        self._network = _up_to(layer)
        _fill(self._network, layer)
        with torch.no_grad():
            self.channels = len(self._activations(torch.zeros(3, CROP, CROP)))

    @property
    def width(self) -> int:
        """The length of a feature row: the entries of the Gram matrix's upper triangle."""
        return self.channels * (self.channels + 1) // 2

    def __call__(self, content: bytes) -> NDArray[np.float32]:
        """Return the row [width] of an image file, of length 1.

        It is the upper triangle of the Gram matrix, with the entries off the diagonal times
        √2. So the distance of two rows is that of the whole matrices, each divided by its
        Frobenius norm.
        """
        import torch

        with torch.no_grad():
            rows = self._activations(torch.from_numpy(prepare(content)))
            gram = (rows @ rows.T).double()
            scale = torch.full_like(gram, 2**0.5).fill_diagonal_(1.0)
            first, second = torch.triu_indices(self.channels, self.channels)
            flat = (gram * scale)[first, second]
            norm = torch.linalg.vector_norm(flat)
        if not torch.isfinite(norm) or norm == 0:
            raise DataShardsError("its Gram matrix is zero or not finite")
        row: NDArray[np.float32] = (flat / norm).float().numpy()
        return row

    def _activations(self, image: Tensor) -> Tensor:
        """Return the layer's output [channels, places] for one image [3, h, w]."""
        output = self._network(image[None])
        if getattr(output, "ndim", 0) != 4:
            raise UsageError(
                f"{self._layer.network}'s layer {self._layer.layer!r} has an output without "
                "planes of channels; name a convolution"
            )
        planes: Tensor = output[0].flatten(1)
        return planes


def prepare(content: bytes) -> NDArray[np.float32]:
    """Return an image file as the networks expect it, float32 [3, 224, 224].

    Short side to 256 (bilinear), 224 × 224 from the centre, ImageNet's mean and deviation.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        image = to_rgb(opened)
    short = min(image.size)
    size = tuple(side * RESIZE // short for side in image.size)
    left, top = (round((side - CROP) / 2) for side in size)
    resized = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized.crop((left, top, left + CROP, top + CROP)), dtype=np.float32) / 255
    mean = np.array(IMAGENET_NORMALIZE.mean, dtype=np.float32)
    std = np.array(IMAGENET_NORMALIZE.std, dtype=np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def _up_to(layer: Layer) -> nn.Module:
    """Return the part of the network up to the layer, without memory for its weights."""
    import torch.fx
    import torchvision.models  # type: ignore[import-untyped]

    if layer.network not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"torchvision has no network {layer.network!r}; for example vgg16")
    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(layer.network, weights=None)
    names = [name for name, _ in network.named_modules() if name]
    if layer.module not in names:
        near = difflib.get_close_matches(layer.layer, [*_VGG16, *names], cutoff=0.4) or names[:5]
        raise UsageError(
            f"{layer.network} has no layer {layer.layer!r}; near names: {', '.join(near)}"
        )

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            # The layer may have layers inside. It stays whole, so that the graph has its output.
            return name == layer.module or super().is_leaf_module(module, name)

    graph = Tracer().trace(network.eval())
    wanted = [node for node in graph.nodes if node.target == layer.module]
    if not wanted:
        raise UsageError(f"{layer.network} never calls its layer {layer.layer!r}")
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (wanted[0],)
    part = torch.fx.GraphModule(network, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    part.delete_all_unused_submodules()
    return part


def _fill(part: nn.Module, layer: Layer) -> None:
    """Load the weights from the file, which stays mapped and is not copied."""
    import torch

    if not layer.weights.is_file():
        raise UsageError(f"{layer.weights}: no such file of weights")
    try:
        state = torch.load(layer.weights, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{layer.weights}: not written by torch.save ({reason})") from None
    needed = list(part.state_dict())
    missing = [
        key for key in needed if not isinstance(state, dict) or not torch.is_tensor(state.get(key))
    ]
    if missing:
        raise UsageError(
            f"{layer.weights}: has no {missing[0]}, which {layer.network} up to {layer.layer} "
            "needs; give torchvision's plain state dict"
        )
    found = {
        key: state[key].float() if state[key].is_floating_point() else state[key] for key in needed
    }
    try:
        part.load_state_dict(found, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{layer.weights}: does not fit {layer.network} ({reason})") from None


def disk_needed(samples: int, width: int) -> int:
    """Return the bytes of the feature rows, float32, of a split."""
    return samples * width * 4


@contextmanager
def feature_rows(
    folder: Path,
    manifest: Manifest,
    layer: Layer,
    width: int,
    *,
    scratch: Path,
    workers: int,
    on_rows: Callable[[int], object] = lambda count: None,
) -> Iterator[NDArray[np.float32]]:
    """Yield the features [samples, width] of a split, in an unnamed file in ``scratch``.

    They have the same bits for any number of ``workers``, which are processes with one thread
    each. ``on_rows`` gets the number of rows that were added. OSError, before any work, if the
    disk is too small; DataShardsError if an image cannot be read.
    """
    with tempfile.TemporaryFile(dir=scratch) as file:
        # Reserve the space: a write to a mapped file on a full disk would kill the process.
        os.posix_fallocate(file.fileno(), 0, disk_needed(manifest.samples, width))
        # The file is removed with the last process that has it open, even if that is killed.
        # Until then this is its path.
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        shape = (manifest.samples, width)
        with ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(folder, layer, path, shape),
        ) as pool:
            try:
                for _ in pool.map(_work, range(manifest.samples), chunksize=_CHUNK):
                    on_rows(1)
            except BrokenProcessPool:
                raise DataShardsError(
                    f"one of {workers} processes was killed, perhaps for lack of memory; "
                    "give fewer --workers"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        yield np.asarray(np.memmap(path, np.float32, "r", shape=shape))


_worker: tuple[Path, Manifest, NDArray[np.void], Textures, NDArray[np.float32]]


def _start(folder: Path, layer: Layer, path: str, shape: tuple[int, int]) -> None:
    """Prepare a worker process."""
    global _worker
    import torch

    end_with_parent()
    torch.set_num_threads(1)
    manifest, index = load_split(folder)
    features = np.memmap(path, np.float32, "r+", shape=shape)
    _worker = folder, manifest, index, Textures(layer), features


def _work(row: int) -> None:
    folder, manifest, index, textures, features = _worker
    content = read_image(folder, manifest, index[row])
    try:
        features[row] = textures(content)
    except (OSError, ValueError, SyntaxError, DataShardsError) as error:
        shard = manifest.shards[index["shard"][row]].name
        key = index["key"][row].decode(errors="replace")
        raise DataShardsError(f"{folder / shard}: {key}: has no texture: {error}") from None


def cluster(features: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """Return the cluster of each row of ``features``, int64 [n], 0 to ``clusters`` - 1.

    Mini-batch k-means (Sculley, 2010) with k-means++ starts. It runs on one thread, so the
    result depends only on the seed. UsageError if there are fewer rows than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans  # type: ignore[import-untyped]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(features) < clusters:
        raise UsageError(f"{len(features)} images make no {clusters} clusters; give --clusters")
    with threadpool_limits(1):
        means = MiniBatchKMeans(clusters, batch_size=_BATCH, n_init=3, random_state=seed)
        return np.asarray(means.fit_predict(features), dtype=np.int64)
