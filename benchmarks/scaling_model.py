"""Where does a step spend its time on more ranks, up to numbers that cannot be tested here?

    python -m benchmarks.scaling_model [--quick]

A step is a sum of parts: forwards and backwards of the networks, HSIC, the optimizers, and the
collectives. Each is measured by itself on this machine, and their sum is compared with whole steps
on 1, 2 and 4 gloo ranks. The same sum with the published speeds of a GPU, in place of the measured
ones, is an estimate for 8 to 1,024 GPUs, not a measurement.
"""

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.communication import Collective, Sizes, collectives, sizes
from benchmarks.harness import Benchmark, in_turn
from benchmarks.scaling import CASES, QUICK_CASES, measure
from benchmarks.step import RESNET, Pair, batches_of, build_game
from rebias_dist.objectives import LOCAL, hsic


@dataclass(frozen=True)
class Parts:
    """Seconds of a step's parts on one rank."""

    networks: float
    hsic: float
    optimizers: float
    communication: float

    @property
    def total(self) -> float:
        """Their sum; it is assumed that nothing overlaps."""
        return self.networks + self.hsic + self.optimizers + self.communication


def forwards(micro_batches: int) -> tuple[int, int, int]:
    """Return the numbers of forwards without a graph of f and of g, and those with a backward.

    They are those of one rank in a step of ReBias with one g. With one micro-batch, the forward
    with a graph gives the features; with more, the features of all must be computed first.
    """
    first = micro_batches if micro_batches > 1 else 0
    return first, first + micro_batches, micro_batches


# ------------------------------------------------------------------- measured here


@dataclass(frozen=True)
class Machine:
    """Seconds of the parts on one thread of this machine, for one pair of networks."""

    forward_f: float  # of a micro-batch
    forward_g: float
    both_f: float  # forward and backward
    both_g: float
    hsic: float  # both updates, all N rows
    optimizers: float


def measure_parts(pair: Pair, n: int, b: int, side: int, least: int) -> Machine:
    """Measure the parts of a step, each by itself."""
    torch.set_num_threads(1)
    game = build_game(pair, n, n // b)
    images = game.normalise(batches_of(b, 1, side)[0].images)
    f, (g,) = game.f, game.gs
    assert f is not None

    def forward(network: torch.nn.Module) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                network(images)

        return run

    def both(network: torch.nn.Module) -> Callable[[], object]:
        return lambda: sum(part.mean() for part in network(images)).backward()

    with torch.no_grad():
        widths = [player.network(images)[1].shape[1] for player in (f, g)]
    left, right = (torch.randn(n, width) for width in widths)

    def updates() -> None:
        for x, y in ((left, right), (right, left)):
            hsic(x.requires_grad_(), y.detach(), 10.0, 10.0, group=LOCAL).backward()

    def optimizers() -> None:
        f.optimizer.step()
        g.optimizer.step()

    programs = {
        "forward_f": forward(f.network),
        "forward_g": forward(g.network),
        "both_f": both(f.network),
        "both_g": both(g.network),
        "hsic": updates,
        "optimizers": optimizers,
    }
    programs["both_f"](), programs["both_g"]()  # gradients for the optimizers
    times = in_turn(programs, seconds=0, least=least)
    return Machine(**{name: found.median for name, found in times.items()})


def seconds_of_collectives(world: int, calls: Sequence[Collective], repeats: int) -> float:
    """Return the seconds of a step's collectives on ``world`` gloo ranks of this machine."""
    if world == 1:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(rank, world, str(Path(folder) / "store"), calls, repeats) for rank in range(world)]
        with multiprocessing.get_context("spawn").Pool(world) as pool:
            return max(pool.starmap(_communicate, jobs, chunksize=1))


def _communicate(
    rank: int, world: int, store: str, calls: Sequence[Collective], repeats: int
) -> float:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    tensors = [torch.zeros(call.elements * call.bytes_each, dtype=torch.uint8) for call in calls]
    tensors = [tensor.view(torch.float32) for tensor in tensors]
    taken = []
    for _ in range(1 + repeats):
        dist.barrier()
        begin = time.perf_counter()
        for call, tensor in zip(calls, tensors, strict=True):
            if call.kind == "all_gather":
                dist.all_gather([torch.empty_like(tensor) for _ in range(world)], tensor)
            else:
                dist.all_reduce(tensor)
        taken.append(time.perf_counter() - begin)
    dist.destroy_process_group()
    return sorted(taken[1:])[repeats // 2]


def predict(
    machine: Machine, world: int, micro_batches: int, cores: int, communication: float
) -> Parts:
    """Predict a step on ``world`` ranks of one thread that share the cores, from its parts."""
    first, of_g, with_backward = forwards(micro_batches)
    share = max(world / cores, 1.0)
    networks = (
        first * machine.forward_f
        + of_g * machine.forward_g
        + with_backward * (machine.both_f + machine.both_g)
    )
    return Parts(
        networks * share, machine.hsic / world * share, machine.optimizers * share, communication
    )


# ------------------------------------------------------------------- carried on to GPUs


@dataclass(frozen=True)
class Gpu:
    """The speeds of a GPU and its links.

    Peaks and bandwidths are those commonly quoted for NVIDIA's A100 SXM 80 GB, with eight to a node
    and a network card of 200 Gbit/s for each. The fractions of the peaks and the latency are
    assumptions: nothing here was measured on a GPU.
    """

    convolutions: float = 0.35 * 312e12  # FLOP/s, bfloat16
    products: float = 0.75 * 19.5e12  # FLOP/s, float32 without TF32, as HSIC wants
    memory: float = 0.75 * 2.0e12  # bytes/s
    in_node: float = 0.75 * 300e9  # bytes/s into a GPU, NVLink
    between: float = 0.75 * 25e9  # bytes/s into a GPU, from other nodes
    latency: float = 10e-6  # seconds of a collective, for each doubling of the ranks
    node: int = 8


# Bytes that HSIC's element-wise passes move for each pair of rows and each update. The assumption
# is 30 reads or writes of a float32, with all tiles computed twice.
_BYTES_A_PAIR = 120


def estimate(
    gpu: Gpu, world: int, n: int, f: Sizes, g: Sizes, flops_f: float, flops_g: float
) -> Parts:
    """Estimate a step on GPUs with one micro-batch each; a backward counts as two forwards.

    Args:
        gpu: its speeds.
        world: number of GPUs.
        n: global batch.
        f: sizes of f.
        g: sizes of g.
        flops_f: FLOPs of f's forward for one image.
        flops_g: FLOPs of g's forward for one image.
    """
    images = n / world
    networks = images * (3 * flops_f + 4 * flops_g) / gpu.convolutions
    pairs = n * n / world
    # Both kernels twice, for the row sums and for the gradient, and the gradient itself.
    products = 2 * pairs * sum(2 * (f.width + g.width) + own.width for own in (f, g))
    objective = products / gpu.products + 2 * pairs * _BYTES_A_PAIR / gpu.memory
    parameters = f.parameters + g.parameters
    optimizers = 12 * 4 * parameters / gpu.memory  # assumed: twelve passes over each parameter
    calls = collectives(n, n // world, world, f, g)
    link = gpu.in_node if world <= gpu.node else gpu.between
    waits = len(calls) * gpu.latency * math.ceil(math.log2(world))
    return Parts(
        networks, objective, optimizers, sum(c.received(world) for c in calls) / link + waits
    )


def forward_flops(network: torch.nn.Module, side: int) -> float:
    """Return the FLOPs of a forward for one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    return float(counter.get_total_flops())


def shares(parts: Parts) -> list[str]:
    """Return the parts in percent of their sum."""
    values = (parts.networks, parts.hsic, parts.optimizers, parts.communication)
    return [f"{100 * value / parts.total:.1f} %" for value in values]


def main() -> None:
    """Print the tables."""
    run = Benchmark("scaling_model", __doc__)
    quick, cores = run.options.quick, os.cpu_count() or 1
    checked = run.table(
        "Milliseconds of a step: the sum of its parts, and measured",
        *("networks", "image", "N", "b", "W", "measured", "sum", "sum / measured"),
        *("networks %", "HSIC %", "optimizers %", "communication %"),
    )
    for name, pair, side, n, b, least in QUICK_CASES if quick else CASES:
        machine = measure_parts(pair, n, b, side, least)
        f, g = sizes(build_game(pair, n, n // b))
        for world in (1, 2) if quick else (1, 2, 4):
            seconds = seconds_of_collectives(world, collectives(n, b, world, f, g), least)
            parts = predict(machine, world, n // b // world, cores, seconds)
            found = measure(world, 1, pair, n, b, side, least)
            checked.add(
                name, f"{side}²", n, b, world, found, f"{1e3 * parts.total:.4g}",
                f"{parts.total / found.median:.2f}", *shares(parts),
            )  # fmt: skip

    expected = run.table(
        "An estimate for A100 GPUs: ResNet-18 and BagNet-18 at 224², one micro-batch a GPU",
        *("W", "N", "images a GPU", "ms", "images/s", "networks %", "HSIC %", "optimizers %"),
        "communication %",
    )
    game = build_game(RESNET, 8, 2)
    f, g = sizes(game)
    assert game.f is not None
    side = 64 if quick else 224
    flops = [forward_flops(player.network, side) for player in (game.f, *game.gs)]
    for world, n in (
        *((8, 256), (8, 1024), (64, 2048), (64, 8192)),
        *((1024, 8192), (1024, 32_768), (1024, 131_072)),
    ):
        parts = estimate(Gpu(), world, n, f, g, *flops)
        expected.add(
            world, f"{n:,}", n // world, f"{1e3 * parts.total:.3g}",
            f"{n / parts.total:,.0f}", *shares(parts),
        )  # fmt: skip
    run.record()


if __name__ == "__main__":
    main()
