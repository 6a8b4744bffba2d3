"""How long does the exact median radius take, and how much memory?

    python -m benchmarks.median [--quick]

It is compared with three programs in the same run: a loop over the pairs that appends each distance
to a Python list; whole matrices of distances turned into lists, as in the public ReBias code (its
result differs, because of rounding and the zero distance of each row to itself); and numpy.median
of the same distances in one array. Memory is the growth of the peak of a new process.
"""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import (
    Benchmark,
    Megabytes,
    in_fresh_process,
    in_turn,
    peak_growth,
    ratio,
    share,
)
from rebias_dist.objectives import median_distance


def batches_of(number: int, n: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, width, generator=generator) for _ in range(number)]


def pair_by_pair(batches: list[Tensor]) -> float:
    squared: list[float] = []
    for rows in batches:
        for i, row in enumerate(rows):
            for other in rows[i + 1 :]:
                squared.append(float((row - other).square().sum()))
    return math.sqrt(np.median(squared))


def matrices_as_lists(batches: list[Tensor]) -> float:
    squared: list[float] = []
    for rows in batches:
        norms = rows.square().sum(1)
        squared.extend((norms[:, None] + norms - 2 * rows @ rows.T).flatten().tolist())
    return math.sqrt(np.median(squared))


def by_numpy(batches: list[Tensor]) -> float:
    squared = [torch.pdist(rows.double()).square_().float().numpy() for rows in batches]
    middle = np.concatenate(squared)
    return math.sqrt(np.median(middle.astype(np.float64)))


def distances_alone(batches: list[Tensor]) -> None:
    """Compute all distances by one matrix product a batch, without a median: the lower limit."""
    for rows in batches:
        torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist")


def memory_of(number: int, n: int, width: int) -> float:
    """Return the megabytes that a call adds to the peak memory of this (new) process."""
    torch.set_num_threads(1)
    median_distance(batches_of(2, 16, 4))
    return peak_growth(partial(median_distance, batches_of(number, n, width)))


def main() -> None:
    run = Benchmark("median", __doc__)
    quick = run.options.quick

    speed = run.table(
        "Milliseconds, median (smallest to largest)",
        *("batches", "rows", "width", "pairs", "ours", "pair by pair", "matrices as lists"),
        *("numpy", "distances alone", "pair by pair / ours", "lists / ours", "numpy / ours"),
        *("distances' share of ours", "ours - numpy"),
        baselines=("pair by pair", "matrices as lists", "numpy", "distances alone"),
    )
    for number, n, width in [(5, 64, 32)] if quick else [(25, 128, 512), (25, 512, 512)]:
        batches = batches_of(number, n, width)
        programs = {
            "ours": partial(median_distance, batches),
            "pair by pair": partial(pair_by_pair, batches),
            "lists": partial(matrices_as_lists, batches),
            "numpy": partial(by_numpy, batches),
            "distances": partial(distances_alone, batches),
        }
        if n > 128:
            del programs["pair by pair"]
        times = in_turn(programs, least=5, seconds=0.0 if n > 128 else 0.3)
        difference = median_distance(batches) - by_numpy(batches)
        others = ("pair by pair", "lists", "numpy")
        speed.add(
            number, n, width, f"{number * math.comb(n, 2):,}", times["ours"],
            *(times.get(name, "–") for name in others),
            times["distances"],
            *(ratio(times[name], times["ours"]) if name in times else "–" for name in others),
            share(times["distances"], times["ours"]),
            f"{difference:.1e}",
        )  # fmt: skip

    memory = run.table(
        "Extra memory at the peak, in a fresh process", "batches", "rows", "width", "pairs", "MB"
    )
    cases = [(5, 64, 32)] if quick else [(25, 128, 512), (25, 2829, 64), (1, 20000, 64)]
    for case in cases:
        grown = in_fresh_process(memory_of, *case)
        memory.add(*case, f"{case[0] * math.comb(case[1], 2):,}", Megabytes(max(grown, 0.1)))
    run.record()


if __name__ == "__main__":
    main()
