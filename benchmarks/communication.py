"""How much does one step send between the ranks, and how does it grow with their number?

    python -m benchmarks.communication [--quick]

The amounts are computed from the algorithm, and compared with the calls of gloo on real ranks. The
bytes are those that a rank receives with ring algorithms: (W - 1)/W of the gathered data, and twice
that part of the all-reduced data.
"""

import multiprocessing
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Benchmark
from benchmarks.step import CONVNETS, RADII, RESNET, Pair, batches_of, build_game
from rebias_dist.step.minimax import Minimax

FLOAT32, FLOAT64 = 4, 8


@dataclass(frozen=True)
class Collective:
    """One call: its purpose, and how much each rank sends."""

    purpose: str
    kind: str  # all_gather or all_reduce, as gloo names them
    elements: int
    bytes_each: int

    def received(self, world: int) -> float:
        """Return the bytes that a rank receives with a ring algorithm."""
        if self.kind == "all_gather":
            return (world - 1) * self.elements * self.bytes_each
        return 2 * (world - 1) / world * self.elements * self.bytes_each


@dataclass(frozen=True)
class Sizes:
    """A network's feature width, and its numbers of parameters and BatchNorm statistics."""

    width: int
    parameters: int
    statistics: int


def collectives(n: int, b: int, world: int, f: Sizes, g: Sizes) -> list[Collective]:
    """Return all collectives of one step of ReBias with one g, in order."""
    longest = -(-(n // b) // world) * b  # rows of the rank with the most
    sums = 2 * longest + 1  # k, ℓ, and the sum of the product

    def features(of: str, sizes: Sizes) -> Collective:
        return Collective(f"features of {of}", "all_gather", longest * sizes.width, FLOAT32)

    def update(of: str, sizes: Sizes) -> list[Collective]:
        return [
            Collective(f"row sums, update of {of}", "all_gather", sums, FLOAT64),
            Collective(f"gradient of {of}", "all_reduce", sizes.parameters, FLOAT32),
            Collective(f"BatchNorm of {of}", "all_reduce", sizes.statistics, FLOAT64),
        ]

    return [
        features("f", f), features("g", g), *update("g", g), features("updated g", g),
        *update("f", f),
    ]  # fmt: skip


def sizes(game: Minimax) -> tuple[Sizes, Sizes]:
    """Return the sizes of f and of g."""
    found = []
    for player in (game.f, *game.gs):
        assert player is not None
        with torch.no_grad():
            _, features = player.network(torch.zeros(2, 3, 64, 64))
        found.append(
            Sizes(
                features.shape[1],
                sum(p.numel() for p in player.parameters),
                sum(2 * m.num_features for m in player.network.modules()
                    if isinstance(m, torch.nn.BatchNorm2d)),
            )
        )  # fmt: skip
    return found[0], found[1]


def measured(n: int, b: int, pair: Pair, side: int) -> list[tuple[str, int]]:
    """Return gloo's calls in one step on this rank, in order: kind and number of elements."""
    rank, world = dist.get_rank(), dist.get_world_size()
    game = build_game(pair, n, n // b)
    mine = batches_of(n, n // b, side)[rank::world]
    for step in range(2):  # DDP rearranges its buckets in the second step
        game.step(mine, step, RADII)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        game.step(mine, 2, RADII)
    events = [event for event in found.events() if event.name.startswith("gloo:")]
    return [
        (event.name.removeprefix("gloo:"), sum(torch.Size(s).numel() for s in event.input_shapes))
        for event in events
    ]


def merged(calls: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Join neighbouring all-reduces, because DDP splits a gradient into buckets."""
    joined: list[tuple[str, int]] = []
    for kind, elements in calls:
        if joined and kind == joined[-1][0] == "all_reduce":
            joined[-1] = (kind, joined[-1][1] + elements)
        else:
            joined.append((kind, elements))
    return joined


def _rank(rank: int, world: int, store: str, arguments: tuple) -> list[tuple[str, int]]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    found = measured(*arguments)
    dist.barrier()
    dist.destroy_process_group()
    return found


def main() -> None:
    run = Benchmark("communication", __doc__)
    pair, side = (CONVNETS, 16) if run.options.quick else (RESNET, 64)
    name = "simple_convnet 7 and 1" if run.options.quick else "ResNet-18 and BagNet-18"
    f, g = sizes(build_game(pair, 8, 2))

    n, b, world = 16, 4, 2
    check = run.table(
        f"One step of {name}, N = {n}, b = {b}, W = {world}: counted and asked of gloo",
        *("call", "counted", "asked"),
    )
    counted = merged([(c.kind, c.elements) for c in collectives(n, b, world, f, g)])
    with tempfile.TemporaryDirectory() as folder:
        case = (n, b, pair, side)
        with multiprocessing.get_context("spawn").Pool(world) as pool:
            store = str(Path(folder) / "store")
            jobs = [(rank, world, store, case) for rank in range(world)]
            asked = merged(pool.starmap(_rank, jobs, chunksize=1)[0])
    for number in range(max(len(counted), len(asked))):
        cells = [
            f"{calls[number][0]} of {calls[number][1]:,}" if number < len(calls) else "–"
            for calls in (counted, asked)
        ]
        check.add(number + 1, *cells)
    assert counted == asked, "the count is wrong"

    growth = run.table(
        f"MB that a rank receives in a step of {name}, b = 8",
        *("N", "W", "features", "row sums", "gradients", "BatchNorm", "share of features and sums"),
    )
    for n, world in ((128, 2), (128, 8), (1024, 8), (1024, 64), (8192, 64), (8192, 1024)):
        parts = {"features": 0.0, "row sums": 0.0, "gradient": 0.0, "BatchNorm": 0.0}
        for call in collectives(n, 8, world, f, g):
            part = next(part for part in parts if call.purpose.startswith(part))
            parts[part] += call.received(world) / 1e6
        ours = parts["features"] + parts["row sums"]
        growth.add(
            n, world, *(f"{value:.3g}" for value in parts.values()),
            f"{100 * ours / sum(parts.values()):.1f} %",
        )  # fmt: skip
    run.record()


if __name__ == "__main__":
    main()
