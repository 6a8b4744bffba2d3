"""What does the HSIC term cost, and what does its precision buy?

    python -m benchmarks.hsic [--quick]

Value and gradient of both sides on one process, against two dense float32 programs in the
same run: ``trace(K @ L)``, the usual O(N³) way, and a fair O(N²) one that autograd
differentiates. Errors are relative to float64, of the gradient of x by its largest entry.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.machine import describe
from rebias_dist.objectives import hsic


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


def value_and_gradients(
    function: Callable[[Tensor, Tensor, float], Tensor], x: Tensor, y: Tensor, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x.requires_grad_(), y.requires_grad_()
    value = function(x, y, sigma)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def milliseconds(function: Callable[[], object], seconds: float = 0.5) -> float:
    """Smallest of repeated runs: on a shared machine the rest is other people's work."""
    function()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="N up to 512")
    parser.add_argument("--width", type=int, default=512, help="features a row (default: 512)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe())
    print(f"float32, width {options.width}, rows with mean 3, sigma = the median distance\n")
    print(
        "|    N | ours ms | dense ms | trace ms | dense/ours | trace/ours "
        "| error of H: ours | dense | of ∂x: ours | dense |\n" + "|---" * 10 + "|"
    )
    sigma = (2 * options.width) ** 0.5
    for n in (64, 128, 256, 512) if options.quick else (64, 128, 256, 512, 2048):
        generator = torch.Generator().manual_seed(n)
        x, y = (torch.randn(n, options.width, generator=generator) + 3 for _ in range(2))
        programs = {"ours": ours, "dense": dense, "trace": trace}
        exact = value_and_gradients(dense, x.double(), y.double(), sigma)
        times, errors = {}, {}
        for name, program in programs.items():
            times[name] = milliseconds(partial(value_and_gradients, program, x, y, sigma))
            found = value_and_gradients(program, x, y, sigma)
            errors[name] = [
                float((a - b).abs().max() / b.abs().max())
                for a, b in zip(found[:2], exact[:2], strict=True)
            ]
        t = times
        print(
            f"| {n:4} | {t['ours']:.2f} | {t['dense']:.2f} | {t['trace']:.2f} "
            f"| {t['dense'] / t['ours']:.2f} | {t['trace'] / t['ours']:.2f} "
            f"| {errors['ours'][0]:.1e} | {errors['dense'][0]:.1e} "
            f"| {errors['ours'][1]:.1e} | {errors['dense'][1]:.1e} |"
        )


if __name__ == "__main__":
    main()
