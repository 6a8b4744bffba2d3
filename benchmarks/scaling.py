"""How does a step scale with the ranks, at the same global batch and micro-batch?

    python -m benchmarks.scaling [--quick]

Real gloo ranks with one thread each are compared with one process that has a thread on each core:
the same samples, objective and cores. The time is that of the slowest rank, from one barrier to the
next. With fewer ranks than micro-batches a rank accumulates, which takes a first pass without
gradients; with one micro-batch a rank that pass is not needed.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.harness import Benchmark, Times, ratio, times_of
from benchmarks.step import CONVNETS, RADII, RESNET, Pair, batches_of, build_game

# Name, networks, side of the images, N, b, and how often a step is measured.
CASES: list[tuple[str, Pair, int, int, int, int]] = [
    ("simple_convnet 7 and 1", CONVNETS, 28, 256, 64, 7),
    ("ResNet-18, BagNet-18", RESNET, 96, 32, 8, 5),
]
QUICK_CASES = [("simple_convnet 7 and 1", CONVNETS, 8, 16, 4, 1)]


def seconds_of_steps(
    rank: int,
    world: int,
    threads: int,
    store: str,
    pair: Pair,
    n: int,
    b: int,
    side: int,
    steps: int,
) -> list[float]:
    """Return the seconds of each step on this rank, after two steps to warm up."""
    torch.set_num_threads(threads)
    if world > 1:
        dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    game = build_game(pair, n, n // b)
    mine = batches_of(n, n // b, side)[rank::world]
    taken = []
    for step in range(2 + steps):
        if world > 1:
            dist.barrier()
        begin = time.perf_counter()
        game.step(mine, step, RADII)
        if world > 1:
            dist.barrier()
        taken.append(time.perf_counter() - begin)
    if world > 1:
        dist.destroy_process_group()
    return taken[2:]


def measure(world: int, threads: int, *case: object) -> Times:
    """Return the times of a step on ``world`` ranks, that is, of the slowest rank."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        jobs = [(rank, world, threads, store, *case) for rank in range(world)]
        with multiprocessing.get_context("spawn").Pool(world) as pool:
            found = pool.starmap(seconds_of_steps, jobs, chunksize=1)
    return times_of([max(step) for step in zip(*found, strict=True)])


def main() -> None:
    run = Benchmark("scaling", __doc__)
    cores = os.cpu_count() or 1
    table = run.table(
        "Milliseconds of a step, median (smallest to largest)",
        *("networks", "image", "N", "b", "W", "threads a rank", "ms", "one process / this"),
    )
    for name, pair, side, n, b, steps in QUICK_CASES if run.options.quick else CASES:
        worlds = (2,) if run.options.quick else (2, 4)
        one = measure(1, cores, pair, n, b, side, steps)
        table.add(name, f"{side}²", n, b, 1, cores, one, ratio(one, one))
        for world in worlds:
            found = measure(world, 1, pair, n, b, side, steps)
            table.add(name, f"{side}²", n, b, world, 1, found, ratio(one, found))
    run.record()


if __name__ == "__main__":
    main()
