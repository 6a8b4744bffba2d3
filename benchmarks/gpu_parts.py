"""The measuring parts of benchmarks.gpu, and what all its parts share."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import adamp
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Benchmark, Megabytes, Times, in_turn, ratio
from benchmarks.hsic import Program, dense, ours
from benchmarks.step import CONVNETS, RADII, RESNET, Pair, batches_of, build_game
from rebias_dist import assemble
from rebias_dist.config.files import validate
from rebias_dist.data.batch import MicroBatch
from rebias_dist.data.splits import open_data
from rebias_dist.errors import RebiasError
from rebias_dist.phases import PHASES, clock_of, timed_by
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.precision import Precision, set_products

PRECISIONS = ("float32", "tf32", "bf16", "fp16", "float64")


@dataclass
class Machine:
    """The device under test, and how long a part may still take."""

    run: Benchmark
    device: torch.device
    quick: bool
    """Tiny cases, which only show that the code works."""
    until: float = 0.0
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rebias-gpu-")))

    @property
    def has_time(self) -> bool:
        """Return whether the part may begin another case."""
        return time.monotonic() < self.until

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def game(self, pair: Pair, samples: int, parts: int, precision: str, **more: Any) -> Minimax:
        """Return a game on the device."""
        set_products(precision)
        return build_game(pair, samples, parts, precision=Precision(precision, self.device), **more)

    def batches(self, samples: int, parts: int, side: int) -> list[MicroBatch]:
        """Return a global batch on the device; the same at every call."""
        torch.manual_seed(1)
        return [batch.to(self.device) for batch in batches_of(samples, parts, side)]

    def times(self, **programs: Callable[[], object]) -> dict[str, Times]:
        """Measure programs in turn, each to its end on the device."""

        def to_the_end(program: Callable[[], object]) -> None:
            program()
            self.wait()

        whole = {name: partial(to_the_end, program) for name, program in programs.items()}
        return in_turn(whole, least=1 if self.quick else 5, seconds=0.0 if self.quick else 0.5)

    def train(
        self, name: str, *flags: str, ranks: int = 1, wait: bool = True, timeout: float = 240
    ) -> subprocess.Popen[str]:
        """Train biased_mnist/demo in processes of its own, under ``folder``."""
        program = [sys.executable, "-m", "rebias_dist.train"]
        if ranks > 1:
            program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            program += [f"--nproc_per_node={ranks}", "-m", "rebias_dist.train"]
        settings = ["--config", "biased_mnist/demo", "--name", name, "--device", self.device.type]
        settings += ["--runs-dir", str(self.folder / "runs"), "--evaluate.final", "none"]
        if self.quick:
            settings += ["--global-batch", "24", "--micro-batch", "8", "--f.width", "0.25"]
        started = subprocess.Popen(
            [*program, *settings, *flags],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if wait:
            try:
                said, _ = started.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                started.kill()
                raise
            assert started.returncode == 0, f"{name}: exit {started.returncode}: {said[-500:]}"
        return started


# ---------------------------------------------------------------- steps


@contextmanager
def _cudnn_benchmark(on: bool) -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def launches_and_busy(machine: Machine, program: Callable[[], object]) -> tuple[int, float]:
    """Return the kernels that a program starts, and the percent of its time in which they run."""
    if machine.device.type != "cuda":
        program()
        return 0, 0.0
    machine.wait()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        begin = time.perf_counter()
        program()
        machine.wait()
        seconds = time.perf_counter() - begin
    kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(kernel.time_range.elapsed_us() for kernel in kernels) / 1e6
    return len(kernels), min(100.0, 100 * busy / seconds)


def phases_of(machine: Machine, program: Callable[[], object]) -> str:
    """Return the percent of a program's time in each phase."""
    clock = clock_of(machine.device)
    with timed_by(clock):
        clock.read()
        program()
        machine.wait()
        found = clock.read()
    whole = sum(found.values())
    return ", ".join(f"{name} {100 * found[name] / whole:.0f}" for name in PHASES if found[name])


def steps(machine: Machine) -> None:
    """Steps: images a second, launches, the busy share of the GPU, memory."""
    table = machine.run.table(
        "A step: milliseconds, median (smallest to largest)",
        *("networks", "precision", "b", "compiled", "cudnn.benchmark", "step", "images/s"),
        *("launches", "busy %", "peak MB", "phases, %"),
    )
    networks: list[tuple[str, Pair, int]] = [
        ("simple_convnet 7 and 1", CONVNETS, 28),
        ("ResNet-18, BagNet-18", RESNET, 224),
    ]
    sizes, ways = (32, 16, 128), ((False, False), (False, True), (True, False))
    precisions: tuple[str, ...] = ("bf16", "float32", "tf32", "fp16")
    if machine.quick:
        networks, sizes = [("simple_convnet 7 and 1", CONVNETS, 12)], (4,)
        ways, precisions = ((False, False),), ("float32",)
    cases = [
        (*network, precision, b, *way)
        for way in ways
        for precision in precisions
        for b in sizes
        for network in networks
    ]
    for name, pair, side, precision, b, compiled, tuned in cases:
        if not machine.has_time:
            break
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(machine.device)
        game = machine.game(pair, b, 1, precision, compile=compiled)
        step = partial(game.step, machine.batches(b, 1, side), 0, RADII)
        with _cudnn_benchmark(tuned):
            times = machine.times(step=step)["step"]
            started, busy = launches_and_busy(machine, step)
            phases = phases_of(machine, step)
        peak = 0.0
        if machine.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(machine.device) / 1e6
        table.add(
            name, precision, b, str(compiled), str(tuned), times, f"{b / times.median:.0f}",
            started, f"{busy:.0f}", Megabytes(max(peak, 1.0)), phases,
        )  # fmt: skip


def parts_of_a_step(machine: Machine) -> None:
    """HSIC and AdamP beside the usual way, and the bookkeeping of a step by itself."""
    table = machine.run.table(
        "Parts of a step: milliseconds, median (smallest to largest)",
        *("part", "ours", "baseline", "baseline / ours", "launches", "baseline's launches"),
        baselines=("baseline",),
    )
    sizes = (16,) if machine.quick else (256, 2048, 8192)
    pair, side = (CONVNETS, 12) if machine.quick else (RESNET, 64)
    game = machine.game(pair, 8, 1, "float32")
    assert game.f is not None
    game.step(machine.batches(8, 1, side), 0, RADII)
    programs: dict[str, dict[str, Callable[[], object]]] = {}
    for n in sizes:
        x = torch.randn(n, 512, device=machine.device, requires_grad=True)
        y = torch.randn(n, 512, device=machine.device)
        programs[f"HSIC of {n} rows and its gradient; baseline: whole matrices"] = {
            "ours": partial(_value_and_gradient, ours, x, y),
            "baseline": partial(_value_and_gradient, dense, x, y),
        }
    for player in (game.f, *game.gs):
        for parameter in player.parameters:
            parameter.grad = torch.ones_like(parameter)
        # The package takes no weights with the channels last.
        copies = [
            p.detach().clone(memory_format=torch.contiguous_format) for p in player.parameters
        ]
        for parameter in copies:
            parameter.grad = torch.ones_like(parameter)
        programs[f"AdamP of {player.name}; baseline: the adamp package"] = {
            "ours": player.optimizer.step,
            "baseline": adamp.AdamP(copies, lr=1e-3, weight_decay=1e-4).step,
        }
        programs[f"BatchNorm buffers of {player.name}"] = {"ours": partial(_buffers, player)}
    for name, sides in programs.items():
        times = machine.times(**sides)
        launches = [launches_and_busy(machine, program)[0] for program in sides.values()]
        if "baseline" in times:
            quotient = ratio(times["baseline"], times["ours"])
            table.add(name, times["ours"], times["baseline"], quotient, *launches)
        else:
            table.add(name, times["ours"], "", "", *launches, "")


def _value_and_gradient(function: Program, x: torch.Tensor, y: torch.Tensor) -> None:
    torch.autograd.grad(function(x, y, 30.0), x)


def _buffers(player: Any) -> None:
    with player.statistics.protected(collect=True):
        pass
    player.statistics.commit(1)


# ---------------------------------------------------------------- what is around a step


def loader(machine: Machine) -> None:
    """Batches that arrive on the device, while nothing else is done."""
    table = machine.run.table(
        "Loader with the transfer to the device: milliseconds of a step", "workers", "time"
    )
    for workers in (0, 2) if machine.quick else (0, 4, 8):
        config = validate({"global_batch": 64, "micro_batch": 32, "data": {"workers": workers}})
        data = open_data(config, assemble.data_root(config))
        source = assemble.build_loader(config, data.train, Consensus(), machine.device)
        brought, _ = next(source.on_device(machine.device, 0, 0))
        for there, here in zip(brought, next(source.epoch(0)), strict=True):
            assert torch.equal(there.images.cpu(), here.images)
        batches = source.on_device(machine.device, 0, 0)

        def step(batches: Iterator[tuple[list[MicroBatch], RebiasError | None]] = batches) -> None:
            found, fault = next(batches)
            assert fault is None
            assert found[0].images.device.type == machine.device.type

        table.add(workers, machine.times(step=step)["step"])
