"""How fast are images loaded from shards, and where does the time go?

    python -m benchmarks.loader [--quick] [--images 2000]

The images are the 20 photographs of the package foolbox, repeated. Each program loads one epoch
with the training transform at 224 pixels, in turn: our loader; torchvision's ImageFolder with
Pillow and float normalisation in a torch DataLoader; stock webdataset with torchvision's decoder
and uint8 transforms; and decoding and transform alone, in the same number of processes, from files
in memory, discarding the result. --cases progressive takes the photographs as they are; baseline
re-encodes them like most of ImageNet: not progressive, 500 x 375 pixels.
"""

import argparse
import hashlib
import io
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from benchmarks.harness import Benchmark, in_turn, ratio
from data_shards.format.manifest import FORMAT, HASH_BYTES, Manifest, Normalize, Shard, index_dtype
from data_shards.format.writer import Plan, split_writer
from data_shards.ordering import derive
from data_shards.system.files import sha256_of
from rebias_dist.data import ShardDataset, TrainLoader, TrainTransform, epoch_order
from rebias_dist.data.decode import decode, describe_decoder
from rebias_dist.data.transforms import random_crop

BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = Normalize(mean=MEAN, std=STD)
CLASSES = 10
CASES = ["progressive", "baseline"]
IMAGENET = 1_281_167


def photographs() -> list[bytes]:
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit("error: the photographs come with foolbox; pip install foolbox")
    paths = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    return [path.read_bytes() for path in paths]


def encoded(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def as_baseline(content: bytes) -> bytes:
    return encoded(Image.open(io.BytesIO(content)).convert("RGB").resize((500, 375)), 95)


def short_side_256(content: bytes) -> bytes:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = 256 / min(image.size)
    size = tuple(round(side * scale) for side in image.size)
    return encoded(image.resize((size[0], size[1]), Image.Resampling.BILINEAR), 90)


def write_shards(folder: Path, contents: list[bytes], images: int) -> Path:
    plan = Plan(
        dataset="photographs",
        split="train",
        classes=tuple(str(c) for c in range(CLASSES)),
        options={},
        normalize=NORMALIZE,
        samples_per_shard=max(images // 10, 1),
    )
    with split_writer(folder, plan) as writer:
        for i in range(images):
            content = contents[i % len(contents)]
            writer.write(f"k{i:05}", content, i % CLASSES, source=f"{i}", size=(1, 1))
    return folder / "train"


def write_folder(folder: Path, contents: list[bytes], images: int) -> Path:
    for i in range(images):
        place = folder / str(i % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:05}.jpg").write_bytes(contents[i % len(contents)])
    return folder


# ---------------------------------------------------------------------------- the programs


def ours(dataset: ShardDataset, workers: int, verify: float = 1.0) -> None:
    loader = TrainLoader(
        dataset,
        global_batch=BATCH,
        micro_batch=BATCH,
        seed=0,
        transform=TrainTransform(224, 0),
        workers=workers,
        verify=verify,
    )
    for (batch,) in loader.epoch(0):
        assert batch.images.shape == (BATCH, 3, 224, 224)


def image_folder(folder: Path, workers: int) -> None:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(
        datasets.ImageFolder(folder, transform),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )
    for images, _ in loader:
        assert images.shape == (BATCH, 3, 224, 224)


_UINT8 = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])


def _torchvision_uint8(content: bytes) -> torch.Tensor:
    stream = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return _UINT8(decode_jpeg(stream))


def _label(content: bytes) -> int:
    return int(content)


def stock_webdataset(urls: list[str], workers: int) -> None:
    samples = (
        webdataset.WebDataset(urls, shardshuffle=False)
        .to_tuple("jpg", "cls")
        .map_tuple(_torchvision_uint8, _label)
        .batched(BATCH, partial=False)
    )
    for images, _ in webdataset.WebLoader(samples, batch_size=None, num_workers=workers):
        assert images.shape == (BATCH, 3, 224, 224)


def transformed(i: int, content: bytes) -> None:
    TrainTransform(224, 0)(decode(content, "simplejpeg"), 0, i)


def scaled(i: int, content: bytes) -> None:
    """Decode to an eighth, quarter or half of the size, if the crop still has 224 pixels."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    crop = random_crop(derive("augment", 0, 0, i), height, width)
    # The smaller side of the crop must keep 224 pixels.
    least = min(224 / crop.height, 224 / crop.width, 1.0)
    pixels = simplejpeg.decode_jpeg(
        content, min_height=math.ceil(height * least), min_width=math.ceil(width * least)
    )
    TrainTransform(224, 0)(torch.from_numpy(pixels).permute(2, 0, 1), 0, i)


Work = Callable[[int, bytes], None]


def _share(work: Work, contents: list[bytes], numbers: range) -> None:
    torch.set_num_threads(1)
    for i in numbers:
        work(i, contents[i])


def alone(work: Work, contents: list[bytes], workers: int) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_share, args=(work, contents, range(first, len(contents), workers)))
        for first in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


# ---------------------------------------------------------------------------- an index of ImageNet


def write_index(folder: Path, samples: int) -> Path:
    """Write a split of ``samples`` equal images whose shards are links to one small file."""
    each, image = 1000, encoded(Image.new("RGB", (64, 64)), 90)
    folder.mkdir()
    shards = -(-samples // each)
    names = [f"train-{number:06}.tar" for number in range(shards)]
    (folder / names[0]).write_bytes(image)
    for name in names[1:]:
        os.link(folder / names[0], folder / name)
    numbers = np.arange(samples)
    index = np.zeros(samples, dtype=index_dtype(24))
    index["shard"], index["length"] = numbers // each, len(image)
    index["label"], index["bias"] = numbers % 1000, -1
    index["hash"] = np.void(hashlib.sha256(image).digest()[:HASH_BYTES])
    np.save(folder / "index.npy", index, allow_pickle=False)
    with (folder / "index.npy").open("rb") as file:
        digest = sha256_of(file)
        # Otherwise its mapped pages would count as written by the process that reads them.
        os.fsync(file.fileno())
    counts = np.diff([*range(0, samples, each), samples]).tolist()
    manifest = Manifest(
        format=FORMAT,
        dataset="large",
        split="train",
        classes=tuple(str(c) for c in range(1000)),
        samples=samples,
        class_counts=tuple(np.bincount(index["label"], minlength=1000).tolist()),
        normalize=NORMALIZE,
        options={},
        shards=tuple(
            Shard(name=n, bytes=len(image), sha256="0" * 64, count=c)
            for n, c in zip(names, counts, strict=True)
        ),
        index_sha256=digest,
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder


def private_memory(pid: int | str = "self") -> float:
    """Return the megabytes of pages that only this process has written."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def index_costs(folder: Path) -> dict[str, float]:
    """Return the seconds of opening and of an epoch's order, and private megabytes.

    The latter are those of opening and of a worker. They are measured in a new process, because
    this one could use memory that it has freed.
    """
    # Not harness.in_fresh_process, which starts daemons: these may not start workers.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_index_costs, folder).result()


def _index_costs(folder: Path) -> dict[str, float]:
    before, begin = private_memory(), time.perf_counter()
    dataset = ShardDataset(folder)
    opening, opened = time.perf_counter() - begin, private_memory() - before
    loader = TrainLoader(dataset, global_batch=BATCH, micro_batch=BATCH, seed=0, workers=1)
    # Batches from the whole data set. Some are left unread, so that the worker does not end.
    steps = loader.steps(0, range(0, loader.steps_per_epoch, max(loader.steps_per_epoch // 30, 1)))
    for _ in range(20):
        next(steps)
    (process,) = multiprocessing.active_children()
    worker = private_memory(process.pid or 0)
    begin = time.perf_counter()
    epoch_order(0, 0, dataset.manifest.shard_counts)
    return {
        "opening s": opening,
        "opening private MB": opened,
        "order of an epoch s": time.perf_counter() - begin,
        "a worker's private MB": worker,
    }


# ---------------------------------------------------------------------------- the tables


def breakdown(dataset: ShardDataset, images: int) -> Iterator[tuple[str, float]]:
    """Yield each part of loading a sample and its milliseconds, in one process."""
    transform = TrainTransform(224, 0)
    contents = [dataset.read(i) for i in range(images)]
    decoded = [decode(contents[i], "simplejpeg") for i in range(min(images, 40))]
    cut = [transform(image, 0, i) for i, image in enumerate(decoded)]
    batch = torch.empty(BATCH, 3, 224, 224, dtype=torch.uint8)

    def copied(i: int) -> None:
        batch[i % BATCH] = cut[i % len(cut)]

    parts: dict[str, Callable[[int], object]] = {
        "find and read": lambda i: dataset.read(i, verify=False),
        "read and check the hash": dataset.read,
        "decode": lambda i: decode(contents[i], "simplejpeg"),
        "draw the crop": lambda i: random_crop(derive("augment", 0, 0, i), 375, 500),
        "crop, resize, mirror": lambda i: transform(decoded[i % len(decoded)], 0, i),
        "into the batch": copied,
    }

    def repeated(part: Callable[[int], object]) -> None:
        for i in range(images):
            part(i)

    # A fixed number of repeats, because the first part is some hundred times as fast as decoding.
    programs = {name: partial(repeated, part) for name, part in parts.items()}
    times = in_turn(programs, seconds=0, least=5)
    yield from ((name, 1e3 * found.median / images) for name, found in times.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=2000, help="of an epoch (default: 2000)")
    parser.add_argument("--repeats", type=int, default=3, help="of each program (default: 3)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)


def compare_loaders(run: Benchmark, folder: Path) -> None:
    quick = run.options.quick
    images = 64 if quick else run.options.images
    repeats = 1 if quick else run.options.repeats
    speed = run.table(
        f"Milliseconds of an epoch of {images} images at 224, median (smallest to largest)",
        *("images", "workers", "ours", "ImageFolder", "webdataset", "alone"),
        *("ImageFolder / ours", "webdataset / ours", "alone / ours", "images/s"),
        baselines=("ImageFolder", "webdataset", "alone"),
    )
    others: list[list[object]] = []
    parts: list[list[object]] = []
    for case in run.options.cases:
        contents = photographs()
        if case == "baseline":
            contents = [as_baseline(content) for content in contents]
        shards = write_shards(folder / case, contents, images)
        tree = write_folder(folder / f"{case}-tree", contents, images)
        small = [short_side_256(content) for content in contents]
        resized = write_shards(folder / f"{case}-256", small, images)
        urls = [str(path) for path in sorted(shards.glob("*.tar"))]
        dataset = ShardDataset(shards, "simplejpeg")
        # A copy for each image, as from a disk: just 20 would stay in the processor's caches.
        in_memory = [dataset.read(i) for i in range(images // BATCH * BATCH)]
        for workers in (1,) if quick else (1, 2):
            programs: dict[str, Callable[[], object]] = {
                "ours": partial(ours, dataset, workers),
                "folder": partial(image_folder, tree, workers),
                "webdataset": partial(stock_webdataset, urls, workers),
                "alone": partial(alone, transformed, in_memory, workers),
            }
            variants: dict[str, Callable[[], object]] = {
                "no hashes": partial(ours, dataset, workers, 0.0),
                "decoder torchvision": partial(ours, ShardDataset(shards, "torchvision"), workers),
                f"decoder {describe_decoder('pillow')}": partial(
                    ours, ShardDataset(shards, "pillow"), workers
                ),
                "shards with short side 256": partial(
                    ours, ShardDataset(resized, "simplejpeg"), workers
                ),
                "alone, scaled DCT": partial(alone, scaled, in_memory, workers),
            }
            times = in_turn({**programs, **variants}, seconds=0, least=repeats)
            speed.add(
                case, workers, *(times[name] for name in programs),
                *(ratio(times[name], times["ours"]) for name in list(programs)[1:]),
                f"{images // BATCH * BATCH / times['ours'].median:.0f}",
            )  # fmt: skip
            for name in variants:
                gain = ratio(times["ours"], times[name])
                others.append([case, workers, name, times[name], gain])
        for part, milliseconds in breakdown(dataset, min(images, 200)):
            parts.append([case, part, f"{milliseconds:.3f}"])
    rows = run.table(
        "The same, variants: milliseconds, and how many times faster than ours above",
        *("images", "workers", "variant", "ms", "gain"),
    )
    for row in others:
        rows.add(*row)
    times_of_parts = run.table("Where the time goes: milliseconds an image", "images", "part", "ms")
    for row in parts:
        times_of_parts.add(*row)


def main() -> None:
    run = Benchmark("loader", __doc__, add_arguments)
    with tempfile.TemporaryDirectory() as folder:
        compare_loaders(run, Path(folder))
        index = run.table(
            "An index, opened in a fresh process",
            *("samples", "opening s", "opening private MB", "order of an epoch s"),
            "a worker's private MB",
        )
        for samples in (20_000,) if run.options.quick else (1000, IMAGENET):
            split = write_index(Path(folder) / f"index-{samples}", samples)
            index.add(f"{samples:,}", *(f"{cost:.3g}" for cost in index_costs(split).values()))
    run.record()


if __name__ == "__main__":
    main()
