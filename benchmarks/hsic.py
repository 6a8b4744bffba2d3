"""What does the HSIC term cost, how does the cost grow, and how precise is the result?

    python -m benchmarks.hsic [--quick]

Value and gradient of both sides in float32 are compared, in the same run, with two dense programs:
`trace(K @ L)`, the usual O(N³) way, and a fair O(N²) one that autograd differentiates. Errors are
relative to float64; that of the gradient of x is relative to its largest entry. Memory is the
growth of the peak, each in a process of its own.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.harness import (
    Benchmark,
    Megabytes,
    Times,
    in_fresh_process,
    in_turn,
    peak_growth,
    ratio,
    share,
    times_of,
)
from rebias_dist.objectives import hsic

Program = Callable[[Tensor, Tensor, float], Tensor]


def kernel(x: Tensor, sigma: float) -> Tensor:
    norms = x.square().sum(1)
    squared = (norms[:, None] + norms - 2 * x @ x.T).clamp(min=0)
    K = torch.exp(squared / (-2 * sigma**2))
    return K - torch.diag(K.diagonal())


def dense(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    n = len(x)
    K, L = kernel(x, sigma), kernel(y, sigma)
    k, l = K.sum(1), L.sum(1)  # noqa: E741
    mean_term = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return ((K * L).sum() + mean_term - 2 / (n - 2) * (k @ l)) / (n * (n - 3))


def trace(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    n = len(x)
    K, L = kernel(x, sigma), kernel(y, sigma)
    KL = K @ L
    mean_term = K.sum() * L.sum() / ((n - 1) * (n - 2))
    return (torch.trace(KL) + mean_term - 2 / (n - 2) * KL.sum()) / (n * (n - 3))


def ours(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    return hsic(x, y, sigma, sigma, check=False)


def products(x: Tensor, y: Tensor) -> None:
    """Compute only the matrix products of the kernels and gradients: the lower limit."""
    for a in (x, y):
        (a @ a.T) @ a


PROGRAMS: dict[str, Program] = {"ours": ours, "dense": dense, "trace": trace}


def rows(n: int, width: int, part: slice = slice(None)) -> tuple[Tensor, Tensor, float]:
    """Return independent features with mean 3, and their median distance."""
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, width, generator=generator)[part] + 3 for _ in range(2))
    return x, y, (2 * width) ** 0.5


def value_and_gradients(
    function: Program, x: Tensor, y: Tensor, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x.requires_grad_(), y.requires_grad_()
    value = function(x, y, sigma)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def memory_of(name: str, n: int, width: int) -> float:
    """Return the megabytes that a call adds to the peak memory of this (new) process."""
    torch.set_num_threads(1)
    value_and_gradients(PROGRAMS[name], *rows(64, width))  # so that libraries are loaded
    return peak_growth(partial(value_and_gradients, PROGRAMS[name], *rows(n, width)))


def cpu_seconds_of_a_rank(rank: int, world: int, store: str, n: int, width: int) -> list[float]:
    """Return the processor seconds of one rank for its share of the value and the gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    x, y, sigma = rows(n, width, slice(rank * n // world, (rank + 1) * n // world))
    value_and_gradients(ours, x, y, sigma)
    times = []
    for _ in range(3):
        dist.barrier()
        begin = time.process_time()
        value_and_gradients(ours, x, y, sigma)
        times.append(time.process_time() - begin)
    dist.barrier()
    dist.destroy_process_group()
    return times


def slowest_rank(world: int, n: int, width: int) -> Times:
    with tempfile.TemporaryDirectory() as folder:
        cases = [(rank, world, str(Path(folder) / "store"), n, width) for rank in range(world)]
        with multiprocessing.get_context("spawn").Pool(world) as pool:
            found = pool.starmap(cpu_seconds_of_a_rank, cases, chunksize=1)
            return max(map(times_of, found), key=lambda times: times.smallest)


def main() -> None:
    run = Benchmark(
        "hsic",
        __doc__,
        lambda parser: parser.add_argument("--width", type=int, default=512, help="of the rows"),
    )
    quick, width = run.options.quick, run.options.width

    speed = run.table(
        f"Milliseconds, median (smallest to largest); float32, both sides of width {width}",
        *("N", "ours", "dense", "trace", "products alone", "dense / ours", "trace / ours"),
        *("products' share of ours", "error of H: ours", "error of H: dense"),
        *("error of ∂x: ours", "error of ∂x: dense"),
        baselines=("dense", "trace", "products alone"),
    )
    for n in (64, 128) if quick else (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384):
        case = rows(n, width)
        present = [name for name in PROGRAMS if name == "ours" or n <= 8192]
        times = in_turn(
            {
                **{name: partial(value_and_gradients, PROGRAMS[name], *case) for name in present},
                "products": partial(products, case[0].clone(), case[1].clone()),
            },
            least=20 if n <= 512 else 3,
            warm_up=n <= 4096,
        )
        errors = ["–"] * 4
        if n <= 2048:
            exact = value_and_gradients(dense, case[0].double(), case[1].double(), case[2])
            for place, name in enumerate(("ours", "dense")):
                for which, (a, b) in enumerate(
                    zip(value_and_gradients(PROGRAMS[name], *case)[:2], exact[:2], strict=True)
                ):
                    off = float((a - b).abs().max() / b.abs().max())
                    errors[2 * which + place] = f"{off:.1e}"
        cells = [times.get(name, "–") for name in PROGRAMS]
        ratios = [
            ratio(times[name], times["ours"]) if name in times else "–"
            for name in ("dense", "trace")
        ]
        part = share(times["products"], times["ours"])
        speed.add(n, *cells, times["products"], *ratios, part, *errors)

    n = 512 if quick else 8192
    memory = run.table(
        "Extra memory at the peak, MB", "N", *PROGRAMS, "trace / ours", baselines=("dense", "trace")
    )
    grown = {name: in_fresh_process(memory_of, name, n, width) for name in PROGRAMS}
    memory.add(
        n, *(Megabytes(max(grown[name], 0.1)) for name in PROGRAMS),
        f"{grown['trace'] / max(grown['ours'], 0.1):.1f}",
    )  # fmt: skip

    ranks = run.table(
        "Milliseconds of processor of the slowest rank (gloo, one thread each)",
        *("N", "W", "ms", "W = 1 / W"),
    )
    alone = None
    for world in (1, 2) if quick else (1, 2, 4, 8):
        found = slowest_rank(world, n, width)
        alone = alone or found
        ranks.add(n, world, found, ratio(alone, found))
    run.record()


if __name__ == "__main__":
    main()
