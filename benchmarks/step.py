"""How long does a step of the game take, compared with the public and a naive algorithm?

    python -m benchmarks.step [--quick]

* public: as in the public ReBias code. Both losses are back-propagated into both networks, so each
  has two forwards and two backwards; HSIC uses whole kernel matrices; AdamP is that of the package;
  channels come first.
* naive: accumulation with HSIC inside each micro-batch and detached opponents. It trains another
  objective; it shows the lowest possible cost of accumulation.

All take the same optimizer steps on the same batches, in turn. The lower limit is the networks'
part of the step alone, without HSIC and optimizers.

If there is a C++ compiler, a second table compares our step with compiled networks (``compile:
true``) and without.

A third table shows the cost of the meter, which is read after every step here, and after
log.every_steps in a run. The same steps are taken with and without it, in turn. The cost of its
marks and a reading, and of a record in metrics.jsonl and TensorBoard, is also measured by itself,
in percent of a step, because other work on the machine disturbs this less.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import adamp
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import Benchmark, in_turn, ratio, share
from benchmarks.hsic import trace
from rebias_dist import methods, models
from rebias_dist.config.schema import MethodConfig, OptimizerConfig
from rebias_dist.data import MicroBatch
from rebias_dist.methods.radii import Radii
from rebias_dist.objectives import LOCAL, hsic
from rebias_dist.phases import HostClock, phase, timed_by
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision
from rebias_dist.telemetry.meter import Meter
from rebias_dist.telemetry.writers import Telemetry

CLASSES, RADII = 9, Radii(10.0, (10.0,))
ADAMP = OptimizerConfig()
CPU = Precision("float32", torch.device("cpu"))
Pair = tuple[tuple[str, dict], tuple[str, dict]]
CONVNETS: Pair = (("simple_convnet", {"kernel_size": 7}), ("simple_convnet", {"kernel_size": 1}))
EQUAL: Pair = (("simple_convnet", {"kernel_size": 3}), ("simple_convnet", {"kernel_size": 3}))
RESNET: Pair = (("resnet18", {}), ("bagnet18", {}))


def build_game(
    pair: Pair,
    samples: int,
    parts: int,
    layout: torch.memory_format = torch.channels_last,
    compile: bool = False,
    precision: Precision = CPU,
    optimizer: OptimizerConfig = ADAMP,
    skips: int = 0,
) -> Minimax:
    """Return a game of two fresh networks."""
    players = []
    for name, (network, options) in zip(("f", "g0"), pair, strict=True):
        torch.manual_seed(0)
        built = models.build(network, num_classes=CLASSES, **options).to(memory_format=layout)
        built = built.to(precision.device, precision.parameters)
        players.append(
            Player(
                name,
                built,
                optimizer=optimizer,
                precision=precision,
                compile=compile,
                skips=skips,
            )
        )
    return Minimax(
        methods.build(MethodConfig()),
        players[0],
        players[1:],
        normalise=lambda images: (
            images.contiguous(memory_format=layout).to(precision.parameters) / 255
        ),
        global_batch=samples,
        micro_batches=parts,
        seed=0,
    )


def batches_of(samples: int, parts: int, side: int) -> list[MicroBatch]:
    """Return a global batch of noise in micro-batches."""
    images = torch.randint(0, 256, (samples, 3, side, side)).to(torch.uint8)
    labels = torch.randint(0, CLASSES, (samples,))
    chunks = [t.chunk(parts) for t in (images, labels, labels, labels)]
    return [MicroBatch(*(chunk[j] for chunk in chunks), j) for j in range(parts)]


def public(game: Minimax, batches: list[MicroBatch]) -> None:
    """Take a step as the public code does, on one micro-batch."""
    (batch,), (g,) = batches, game.gs
    images = game.normalise(batch.images)
    for player, sign in ((g, -1), (game.f, 1)):
        outputs = {p.name: p.network(images) for p in (game.f, g)}
        loss = cross_entropy(outputs[player.name][0], batch.labels)
        term = trace(outputs["f"][1], outputs["g0"][1], RADII.f)
        (loss + sign * term).backward()
        player.optimizer.step()
        for p in (game.f, g):
            p.optimizer.zero_grad()


def networks_alone(game: Minimax, batches: list[MicroBatch]) -> None:
    """Run only the networks' part of a step: the lower limit.

    For each micro-batch these are f's forward and backward, and g's two forwards and one backward.
    With several micro-batches the features must be known first: one more forward of each.
    """
    (g,) = game.gs
    assert game.f is not None
    for batch in batches:
        images = game.normalise(batch.images)
        with torch.no_grad():
            g.network(images)
            if len(batches) > 1:
                game.f.network(images)
                g.network(images)
        for player in (g, game.f):
            logits, _ = player.network(images)
            cross_entropy(logits, batch.labels).backward()


def naive(game: Minimax, batches: list[MicroBatch]) -> None:
    """Take a step with HSIC inside each micro-batch."""
    (g,) = game.gs
    for player, other, sign in ((g, game.f, -1), (game.f, g, 1)):
        for batch in batches:
            images = game.normalise(batch.images)
            with torch.no_grad():
                _, opponent = other.network(images)
            logits, features = player.network(images)
            term = hsic(features, opponent, RADII.f, RADII.g[0], group=LOCAL)
            loss = cross_entropy(logits, batch.labels) + sign * term
            (loss / len(batches)).backward()
        player.optimizer.step()
        player.optimizer.zero_grad()


def compare_compiled(run: Benchmark) -> None:
    """Add the table of steps with and without compiling."""
    table = run.table(
        "Milliseconds of a step with compiled networks, median (smallest to largest)",
        *("networks", "N", "micro-batches", "image", "eager ms", "compiled ms", "eager / compiled"),
        "first step s",
        baselines=("eager ms",),
    )
    cases = [
        ("simple_convnet 7 and 1", CONVNETS, 256, 8, 28),
        ("ResNet-18, BagNet-18", RESNET, 16, 2, 224),
    ]
    if run.options.quick:
        cases = [("simple_convnet 3 and 3", EQUAL, 16, 2, 14)]
    for name, pair, samples, parts, side in cases:
        batches = batches_of(samples, parts, side)
        games = [build_game(pair, samples, parts, compile=compile) for compile in (False, True)]
        begin = time.perf_counter()
        games[1].step(batches, 0, RADII)
        first = time.perf_counter() - begin
        eager, compiled = (partial(game.step, batches, 0, RADII) for game in games)
        times = in_turn(
            {"eager": eager, "compiled": compiled},
            least=1 if run.options.quick else 9,
            seconds=0.0,
        )
        table.add(
            name, samples, parts, f"{side}²", times["eager"], times["compiled"],
            ratio(times["eager"], times["compiled"]), f"{first:.1f}",
        )  # fmt: skip


def metered(game: Minimax, batches: list[MicroBatch], meter: Meter) -> None:
    """Take a step and read the meter."""
    with meter.running():
        game.step(batches, 0, RADII)
        meter.step()
        meter.read().scalars()


def seconds_of_marks(game: Minimax, batches: list[MicroBatch]) -> tuple[int, float]:
    """Return the number of phases in a step, and the seconds of as many empty ones."""
    begun = []

    class Counting(HostClock):
        def switch(self, phase: str) -> str:
            begun.append(phase)
            return super().switch(phase)

    with timed_by(Counting()):
        game.step(batches, 0, RADII)
    phases = len(begun) // 2  # each switches twice: at its begin and back
    meter = Meter(game.N, 0, 1, Precision("float32", torch.device("cpu")))
    repeats = 200
    with meter.running():
        begin = time.perf_counter()
        for _ in range(repeats):
            for _ in range(phases):
                with phase("forward"):
                    pass
            meter.step()
            meter.read().scalars()
        return phases, (time.perf_counter() - begin) / repeats


def seconds_of_a_record() -> float:
    """Return the seconds to write a record of 30 figures, the progress line and state.json."""
    values, records = {f"group/{number}": 0.5 for number in range(30)}, 200
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "logs").mkdir()
        telemetry = Telemetry(
            Path(folder), rank=0, total_steps=records, global_batch=1, identity={"name": "record"}
        )
        for step in range(1, records + 1):
            time.sleep(0.005)  # TensorBoard's thread empties its queue during a step
            begin = time.perf_counter()
            telemetry.scalars(step, values, epoch=0)
            telemetry.progress(step, epoch=0, text="loss f 0.5 g0 0.5")
            telemetry.state("running", step=step, epoch=0)
            seconds += time.perf_counter() - begin
        telemetry.close()
    return seconds / records


def main() -> None:
    """Print the tables."""
    run = Benchmark("step", __doc__)
    table = run.table(
        "Milliseconds of a step, median (smallest to largest)",
        *("networks", "N", "micro-batches", "image", "baseline", "baseline ms", "ours ms"),
        *("baseline / ours", "networks alone ms", "their share of ours"),
        baselines=("baseline ms", "networks alone ms"),
    )
    cases: list[tuple[str, Pair, int, int, int, Callable]] = [
        ("simple_convnet 7 and 1", CONVNETS, 256, 1, 28, public),
        ("ResNet-18, BagNet-18", RESNET, 16, 1, 224, public),
        ("simple_convnet 3 and 3", EQUAL, 256, 8, 28, naive),
    ]
    if run.options.quick:
        cases = [
            ("simple_convnet 7 and 1", CONVNETS, 16, 1, 14, public),
            ("simple_convnet 3 and 3", EQUAL, 16, 2, 14, naive),
        ]
    for name, pair, samples, parts, side, baseline in cases:
        batches = batches_of(samples, parts, side)
        games = [build_game(pair, samples, parts) for _ in range(3)]
        if baseline is public:
            games[1] = build_game(pair, samples, parts, torch.contiguous_format)
            for player in (games[1].f, *games[1].gs):
                assert player is not None
                player.optimizer = adamp.AdamP(player.parameters, lr=1e-3, weight_decay=1e-4)
        times = in_turn(
            {
                "ours": partial(games[0].step, batches, 0, RADII),
                "baseline": partial(baseline, games[1], batches),
                "networks": partial(networks_alone, games[2], batches),
            },
            least=1 if run.options.quick else 9,
            seconds=0.0,
        )
        table.add(
            name, samples, parts, f"{side}²", baseline.__name__, times["baseline"],
            times["ours"], ratio(times["baseline"], times["ours"]), times["networks"],
            share(times["networks"], times["ours"]),
        )  # fmt: skip
    if shutil.which(os.environ.get("CXX", "g++")):
        compare_compiled(run)
    table = run.table(
        "Milliseconds of a step with the meter and without, median (smallest to largest)",
        *("networks", "N", "micro-batches", "image", "without ms", "with ms", "with / without"),
        *("phases a step", "their cost, %", "and a record's, %"),
        baselines=("without ms",),
    )
    record = seconds_of_a_record()
    for name, pair, samples, parts, side, _ in cases:
        batches, game = batches_of(samples, parts, side), build_game(pair, samples, parts)
        meter = Meter(samples, 0, 1, Precision("float32", torch.device("cpu")))
        times = in_turn(
            {
                "without": partial(game.step, batches, 0, RADII),
                "with": partial(metered, game, batches, meter),
            },
            least=1 if run.options.quick else 9,
            seconds=0.0,
        )
        phases, seconds = seconds_of_marks(game, batches)
        table.add(
            name, samples, parts, f"{side}²", times["without"], times["with"],
            ratio(times["with"], times["without"]), phases,
            f"{100 * seconds / times['without'].median:.3f}",
            f"{100 * record / times['without'].median:.3f}",
        )  # fmt: skip
    run.record()


if __name__ == "__main__":
    main()
