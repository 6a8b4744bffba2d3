"""What does the exact median radius cost, and how much memory?

    python -m benchmarks.median [--quick]

Against gathering all distances and calling numpy.median, in the same run.
"""

import argparse
import math
import resource
import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe
from rebias_dist.objectives import median_distance


def by_numpy(batches: list[Tensor]) -> float:
    squared = [torch.pdist(rows).square_().numpy() for rows in batches]
    return math.sqrt(np.median(np.concatenate(squared)))


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the usual 25 batches of 128 only")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe())
    print(
        "\n| batches | rows | width | pairs | ours s | numpy s | numpy/ours | difference "
        "| ours, MB more |\n" + "|---" * 9 + "|"
    )
    cases = [(25, 128, 512)] if options.quick else [(25, 128, 512), (25, 512, 512), (1, 8192, 128)]
    for number, n, width in cases:
        generator = torch.Generator().manual_seed(0)
        batches = [torch.randn(n, width, generator=generator) for _ in range(number)]
        before = peak_megabytes()
        begin = time.perf_counter()
        sigma = median_distance(batches)
        ours = time.perf_counter() - begin
        more = peak_megabytes() - before  # ours runs first: peaks never fall
        begin = time.perf_counter()
        expected = by_numpy(batches)
        numpy = time.perf_counter() - begin
        print(
            f"| {number} | {n} | {width} | {number * math.comb(n, 2):,} | {ours:.2f} | {numpy:.2f} "
            f"| {numpy / ours:.2f} | {abs(sigma / expected - 1):.1e} | {more:.0f} |"
        )


if __name__ == "__main__":
    main()
