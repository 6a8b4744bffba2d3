"""Measure how fast convert is with all its checks, and how long opening and verifying take.

    python -m benchmarks.convert [--quick] [--workers N]

The images are photographs of ImageNet's size, made from foolbox's 20. convert is compared with the
usual way: a process pool of the same size with Pillow's load, which misses most damage, and
webdataset's ShardWriter, which neither syncs nor reads back. It is also compared with the strict
check alone. Starting the processes is part of every time. The disk is synced before each
measurement, so that earlier writes do not count. Processor time is shown as well, because it
depends less on other work of the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import io
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from data_shards.audit.verify import verify_split
from data_shards.convert.pipeline import convert_listing
from data_shards.convert.plan import Conversion, Options
from data_shards.convert.publish import Limit
from data_shards.convert.workers import Crash, map_surviving
from data_shards.format.manifest import Normalize, Shard, index_dtype, load_split
from data_shards.format.writer import Plan, shard_writer, write_records
from data_shards.images import jpeg
from data_shards.images.examine import examine_item
from data_shards.sources.listing import Item, Listing, read_item

# The harness and webdataset import torch. A worker imports this module, and torch would take
# nearly all of its limited memory. So they are imported later.

IMAGENET = 1_281_167
_PER_SHARD = 1000
_RESIZED = 6  # one in so many images is resized, because that takes so many times as long


def photographs(folder: Path, count: int) -> list[Path]:
    """Write ``count`` different JPEGs of 500 x 375 pixels and about 85 kB."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit("error: the photographs come with foolbox; pip install foolbox")
    originals = [
        Image.open(path).convert("RGB")
        for path in sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    ]
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        image = originals[number % len(originals)]
        left, upper = (int(rng.integers(0, 12)), int(rng.integers(0, 137)))
        image = image.crop((left, upper, left + 500, upper + 375))
        image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.9, 1.1)))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=int(rng.integers(92, 98)))
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(stream.getvalue())
    return paths


def listing(paths: list[Path]) -> Listing:
    items = [Item(path.name, path.stem, 0, "", str(path), 0, path.stat().st_size) for path in paths]
    return Listing("photographs", "train", ("all",), tuple(items))


def check_alone(given: Listing, workers: int) -> None:
    for found in map_surviving(examine_item_only, given.items, workers=workers, chunk=32):
        assert not isinstance(found, Crash)
        assert found == "ok"


def examine_item_only(item: Item) -> str:
    return examine_item(item)[0].verdict


def convert(given: Listing, output: Path, workers: int, options: Options) -> None:
    manifest = convert_listing(
        Conversion(given, options), output, workers=workers, limit=Limit(0, "the benchmark")
    )
    assert manifest is not None
    assert manifest.samples == len(given.items)


def usual(given: Listing, output: Path, workers: int) -> None:
    import webdataset  # noqa: F401  # once, before the processes are forked

    output.mkdir()
    batches = [
        (number, given.items[first : first + _PER_SHARD], output)
        for number, first in enumerate(range(0, len(given.items), _PER_SHARD))
    ]
    with multiprocessing.Pool(workers) as pool:
        assert sum(pool.imap_unordered(usual_shard, batches)) == len(given.items)


def usual_shard(batch: tuple[int, tuple[Item, ...], Path]) -> int:
    from webdataset import ShardWriter

    number, items, output = batch
    pattern = str(output / "train-%06d.tar")
    with ShardWriter(pattern, start_shard=number, maxcount=_PER_SHARD + 1, verbose=0) as writer:
        for item in items:
            content = Path(item.path).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.load()
            facts = {
                "source": item.source,
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": image.size,
            }
            writer.write({"__key__": item.key, "jpg": content, "cls": item.label, "json": facts})
    return len(items)


def write_large_split(folder: Path) -> None:
    """Write the index and manifest of a split of ImageNet's size, without shards."""
    rows = np.arange(IMAGENET)
    index = np.zeros(IMAGENET, dtype=index_dtype(22))
    index["shard"], index["offset"] = rows // 1000, rows % 1000 * 112_000
    index["length"], index["label"], index["bias"] = 110_000, rows % 1000, -1
    index["key"] = [b"n%08d_%d" % (row % 1000, row) for row in rows.tolist()]
    shards = [
        Shard(name=f"train-{n:06d}.tar", bytes=113_000_000, sha256="0" * 64, count=int(count))
        for n, count in enumerate(np.bincount(index["shard"]))
    ]
    plan = Plan(
        "imagenet1k", "train", tuple(map(str, range(1000))), {},
        Normalize(mean=(0.5,) * 3, std=(0.5,) * 3), 1000,
    )  # fmt: skip
    folder.mkdir()
    write_records(folder, plan, shards, index)


def opening(folder: Path) -> tuple[float, float]:
    """Return the seconds of opening a split, and the megabytes of private memory that it adds.

    For a new process.
    """
    before = private()
    begin = time.perf_counter()
    opened = load_split(folder)
    seconds = time.perf_counter() - begin
    assert len(opened[1]) == IMAGENET
    return seconds, private() - before


def private() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(s.split()[1]) for s in lines if s.startswith("Private_")) / 1024


def processor_seconds() -> float:
    """Return the user and system time of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def counting(program: Callable[[], object], taken: list[float]) -> Callable[[], None]:
    """Return a function that runs the program and appends its processor seconds to ``taken``."""

    def run() -> None:
        begin = processor_seconds()
        program()
        taken.append(processor_seconds() - begin)

    return run


def parts(given: Listing, folder: Path) -> dict[str, float]:
    """Return the processor milliseconds an image of each part of a conversion, in this process."""
    taken: dict[str, float] = {}
    counts = len(given.items)

    def timed(part: str, work: Callable[[Item], object]) -> None:
        begin = time.process_time()
        for item in given.items:
            work(item)
        taken[part] = (time.process_time() - begin) / counts * 1e3

    contents = {item: read_item(item) for item in given.items}
    segments = {item: jpeg.parse(contents[item]) for item in given.items}
    headers = {item: jpeg.read_header(contents[item], segments[item]) for item in given.items}
    found = [examine_item(item) for item in given.items]
    timed("read", read_item)
    timed("hash", lambda item: hashlib.sha256(contents[item]).digest())
    timed("walk the markers", lambda item: jpeg.parse(contents[item]))
    timed(
        "decode",
        lambda item: jpeg.decode_strictly(contents[item], headers[item], segments[item]),
    )
    timed("all of the check", examine_item)
    begin = time.process_time()
    with shard_writer(folder / "parts.tar", folder) as writer:
        for item, (examination, content) in zip(given.items, found, strict=True):
            writer.write(
                item.key, content, 0, source=item.source, size=examination.size,
                sha256=bytes.fromhex(examination.sha256),
            )  # fmt: skip
        writer.finish()
    taken["write, sync, read back, hash"] = (time.process_time() - begin) / counts * 1e3
    return taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")


def main() -> None:
    from benchmarks.harness import Benchmark, in_turn, ratio, times_of

    run = Benchmark("convert", __doc__, add_arguments)
    quick = run.options.quick
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        paths = photographs(folder / "in", 40 if quick else 12_000)
        given = listing(paths)
        size = np.mean([item.length for item in given.items]) / 1e3
        of = f"{len(given.items):,} JPEGs of 500 x 375 pixels and {size:.0f} kB"
        ratios = ("usual / convert", "check alone / convert")
        few = dataclasses.replace(given, items=given.items[::_RESIZED])
        resized = f"--resize 256, {len(few.items):,} of them"
        columns = ("workers", "convert", "usual", "check alone", resized, "verify")
        images = dict.fromkeys(("convert", "usual", "check", "verify"), len(given.items))
        images["resize"] = len(few.items)

        def prepare(name: str) -> None:
            if name != "verify":
                shutil.rmtree(folder / name, ignore_errors=True)
            os.sync()

        measured = []
        for workers in run.options.workers:
            options = Options(samples_per_shard=_PER_SHARD)
            smaller = Options(samples_per_shard=_PER_SHARD, resize=256)
            programs = {
                "convert": partial(convert, given, folder / "convert", workers, options),
                "usual": partial(usual, given, folder / "usual", workers),
                "check": partial(check_alone, given, workers),
                "resize": partial(convert, few, folder / "resize", workers, smaller),
                "verify": partial(verify, folder / "convert" / "train", workers),
            }
            taken: dict[str, list[float]] = {name: [] for name in programs}
            counted = {name: counting(program, taken[name]) for name, program in programs.items()}
            times = in_turn(
                counted, least=1 if quick else 3, seconds=0.0, warm_up=False, prepare=prepare
            )
            processor = {name: times_of(seconds) for name, seconds in taken.items()}
            measured.append((workers, times, processor))
        speed = run.table(
            f"Milliseconds an image, median (smallest to largest), {of}",
            *columns, *ratios, "images/s", baselines=("usual", "check alone"),
        )  # fmt: skip
        for workers, times, _ in measured:
            speed.add(
                workers,
                *(t / images[name] for name, t in times.items()),
                ratio(times["usual"], times["convert"]),
                ratio(times["check"], times["convert"]),
                f"{len(given.items) / times['convert'].median:.0f}",
            )
        cost = run.table(
            "The same in milliseconds of processor", *columns, *ratios,
            baselines=("usual", "check alone"),
        )  # fmt: skip
        for workers, _, times in measured:
            cost.add(
                workers,
                *(t / images[name] for name, t in times.items()),
                ratio(times["usual"], times["convert"]),
                ratio(times["check"], times["convert"]),
            )
        shares = run.table("Where the time goes: milliseconds of processor an image", "part", "ms")
        for part, milliseconds in parts(few, folder).items():
            shares.add(part, f"{milliseconds:.3f}")
        large = run.table(
            f"Opening a split of {IMAGENET:,} samples in a fresh process", "seconds", "private MB"
        )
        write_large_split(folder / "large")
        for _ in range(3):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, megabytes = pool.apply(opening, (folder / "large",))
            large.add(f"{seconds:.3f}", f"{megabytes:.1f}")
    run.record()


def verify(split: Path, workers: int) -> None:
    assert not list(verify_split(split, workers=workers))


if __name__ == "__main__":
    main()
