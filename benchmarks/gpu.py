"""Does training on GPUs compute what it should, and how fast?

    python -m benchmarks.gpu [--minutes 10] [--only PART ...]

For a machine with one or more GPUs; it needs no network. Each part has a share of the time, and
the more important parts come first. A part that fails is named, the others still run, and the exit
code is 1. Without a GPU the exit code is 2. With ``--device cpu --quick`` the same code runs on a
CPU in tiny cases; its times mean nothing.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import gpu_parts
from benchmarks.coupled import PLAIN, by_the_method, samples
from benchmarks.gpu_parts import PRECISIONS, Machine
from benchmarks.harness import Benchmark
from benchmarks.step import CONVNETS, CPU, RADII, batches_of, build_game
from rebias_dist.config.schema import OptimizerConfig
from rebias_dist.evaluation.dependence import dependence
from rebias_dist.objectives import hsic, median_distance
from rebias_dist.runs import checkpoint
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.precision import Precision

SGD = OptimizerConfig(name="sgd", lr=0.01)


def difference(ours: Tensor, truth: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    ours, truth = ours.detach().double().cpu(), truth.detach().double().cpu()
    return float((ours - truth).abs().max() / truth.abs().max().clamp(min=1e-300))


def weights(game: Minimax) -> list[Tensor]:
    """Return the weights and buffers of all networks."""
    players = [*([game.f] if game.f else []), *game.gs]
    return [value for p in players for value in p.network.state_dict().values()]


# ---------------------------------------------------------------- checks


def environment(machine: Machine) -> None:
    """What the machine has."""
    table = machine.run.table("Environment", "what", "value")
    table.add("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    table.add("cuDNN", torch.backends.cudnn.version())
    if machine.device.type == "cuda":
        table.add("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            table.add(f"GPU {index}", f"{found.name}, {found.total_memory / 1e9:.0f} GB")


def objectives(machine: Machine) -> None:
    """HSIC, coupled objectives and medians against float64 on the CPU, with TF32 switched on."""
    table = machine.run.table(
        "Relative difference from float64 on the CPU (value and gradient)",
        *("objective", "N", "dtype", "value", "gradient", "limit"),
    )
    torch.set_float32_matmul_precision("high")  # which must not reach the objectives
    limits = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
    failed = []

    def compare(name: str, n: int, dtype: torch.dtype, ours: Any, truth: Any) -> None:
        found = [difference(a, b) for a, b in zip(ours, truth, strict=True)]
        table.add(name, n, str(dtype), *(f"{x:.1e}" for x in found), f"{limits[dtype]:.0e}")
        if max(found) > limits[dtype]:
            failed.append(f"{name} of {n} rows in {dtype}")

    for n in (64,) if machine.quick else (256, 2048, 8192):
        for dtype in limits:
            if not machine.has_time:
                break
            x, h, _, _ = (t.to(dtype) if t.is_floating_point() else t for t in samples(n, 64, 1))
            results = []
            for device, kind in ((machine.device, dtype), (torch.device("cpu"), torch.float64)):
                a, b = (t.detach().to(device, kind) for t in (x, h))
                a.requires_grad_()
                value = hsic(a, b, 16.0, 16.0, check=False)
                results.append((value, torch.autograd.grad(value, a)[0]))
            compare("hsic", n, dtype, *results)
            medians = [median_distance([t.detach()]) for t in (x.to(machine.device), x)]
            if medians[0] != medians[1]:
                failed.append(f"median of {n} rows in {dtype}: {medians[0]} and {medians[1]}")
            evaluated = [
                dependence({"f": a, "g0": b}, None)["cka"][0]
                for a, b in ((x.to(machine.device), h.to(machine.device)), (x.double(), h.double()))
            ]
            if abs(evaluated[0] - evaluated[1]) > limits[dtype]:
                failed.append(f"CKA of {n} rows in {dtype}: {evaluated[0]} and {evaluated[1]}")
    for name in PLAIN:
        for n in (64,) if machine.quick else (256, 2048):
            if not machine.has_time:
                break
            views = 2 if name in ("softcon", "biascon") else 1
            case = [t.detach() for t in samples(n, 64, views)]
            results = []
            for device, kind in ((machine.device, torch.float32), (CPU.device, torch.float64)):
                x, h, *known = (t.to(device, kind if t.is_floating_point() else None) for t in case)
                results.append(by_the_method(name, views, x.requires_grad_(), h, *known))
            compare(name, n, torch.float32, *results)
    assert not failed, "; ".join(failed)


def equal_steps(machine: Machine) -> None:
    """Five steps on the device and on the CPU, in one pass and with gradient caching."""
    table = machine.run.table(
        "Largest relative difference of a weight after five steps, from the same on the CPU",
        *("precision", "micro-batches", "difference", "limit"),
    )
    n, side = (8, 12) if machine.quick else (64, 28)
    failed = []
    for precision, limit in (("float64", 1e-9), ("float32", 1e-5)):
        for parts in (1, 4):
            batches = batches_of(n, parts, side)
            found = []
            for device in (machine.device, CPU.device):
                chosen = Precision(precision, device)
                game = build_game(CONVNETS, n, parts, precision=chosen, optimizer=SGD)
                for step in range(5):
                    game.step([batch.to(device) for batch in batches], step, RADII)
                found.append(weights(game))
            most = max(difference(a, b) for a, b in zip(*found, strict=True))
            table.add(precision, parts, f"{most:.1e}", f"{limit:.0e}")
            if most > limit:
                failed.append(f"{precision} with {parts} micro-batches: {most:.1e}")
    assert not failed, "; ".join(failed)


def without_waiting(machine: Machine) -> None:
    """Steps in which CUDA reports every wait of the host as an error."""
    table = machine.run.table("Steps under set_sync_debug_mode", "precision", "compiled", "waits")
    n, side = (8, 12) if machine.quick else (64, 28)
    failed = []
    for compiled in (False,) if machine.quick else (False, True):
        for precision in PRECISIONS:
            if not machine.has_time:
                break
            game = machine.game(CONVNETS, n, 1, precision, compile=compiled)
            batches = machine.batches(n, 1, side)
            for step in range(3):
                game.step(batches, step, RADII)
            machine.wait()
            text = "none"
            try:
                if machine.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                game.step(batches, 3, RADII).reduce(n)
            except RuntimeError as error:
                text = str(error).splitlines()[0]
                where = traceback.extract_tb(error.__traceback__)[-1]
                failed.append(f"{precision}: {where.filename}:{where.lineno}")
            finally:
                if machine.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            table.add(precision, str(compiled), text)
    assert not failed, "; ".join(failed)


def resume(machine: Machine) -> None:
    """Two equal runs, and one that is interrupted and resumed, have the same bits."""
    table = machine.run.table("Runs with deterministic: true", "run", "the same bits", "stall s")
    total, middle = (4, 2) if machine.quick else (60, 25)
    flags = ("--deterministic", "true", "--radius.f", "1.0")
    for name in ("first", "second"):
        machine.train(name, *flags, "--max-steps", str(total))
    machine.train("resumed", *flags, "--max-steps", str(middle))
    machine.train("resumed", *flags, "--max-steps", str(total))
    truth = _players(machine, "first")
    lines = (machine.folder / "runs/first/metrics.jsonl").read_text().splitlines()
    stalls = [json.loads(line).get("checkpoint/stall_seconds") for line in lines]
    stall = max((s for s in stalls if s is not None), default=float("nan"))
    same = {name: _equal(truth, _players(machine, name)) for name in ("second", "resumed")}
    for name, equal in same.items():
        table.add(name, str(equal), f"{stall:.3f}")
    assert all(same.values()), f"other bits: {same}"


def _players(machine: Machine, name: str) -> Any:
    return checkpoint.load_choice(machine.folder / "runs" / name / "checkpoints", "last")["players"]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


# ---------------------------------------------------------------- several ranks


def ranks(machine: Machine) -> None:
    """Steps over NCCL (gloo on a CPU): uneven ranks, and an overflow on one of them."""
    table = machine.run.table("Steps of several ranks", "ranks", "difference from one", "overflow")
    n, side = (12, 12) if machine.quick else (96, 28)
    for world in (1, 2) if _ranks(machine) > 1 else (1,):
        store = machine.folder / f"store-{world}"
        arguments = [(r, world, str(store), machine.device.type, n, side) for r in range(world)]
        with multiprocessing.get_context("spawn").Pool(world) as pool:
            found = pool.starmap_async(_rank, arguments, chunksize=1).get(timeout=200)
        differences, digests, skips = zip(*found, strict=True)
        off, skipped = max(differences), all(skips)
        table.add(world, f"{off:.1e}", "left out jointly" if skipped else "NOT left out")
        assert len(set(digests)) == 1, "the ranks have other weights"
        assert off < 1e-9, f"{world} ranks differ from one by {off:.1e}"
        assert skipped, f"{world} ranks do not leave out a step that overflows on one"


def _ranks(machine: Machine) -> int:
    return 2 if machine.device.type == "cpu" else torch.cuda.device_count()


def _rank(
    rank: int, world: int, store: str, kind: str, n: int, side: int
) -> tuple[float, str, bool]:
    """Return the difference from one process, the weights' sums, whether a bad step is skipped."""
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(1)
    batches = batches_of(n, 3, side)
    precision = Precision("float64", device)
    build = partial(build_game, CONVNETS, n, 3, precision=precision, optimizer=SGD, skips=2)
    alone = build()
    on_device = [batch.to(device) for batch in batches]
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=dist.FileStore(store, world),
        rank=rank,
        world_size=world,
    )
    # It was made before there was a group, and so has all micro-batches and reduces nothing.
    together = build()
    mine = on_device[rank::world]
    for step in range(3):
        together.step(mine, step, RADII)
    after = [value.clone() for value in weights(together)]
    assert together.f is not None
    if rank == 0:
        together.f.network.register_forward_hook(
            lambda module, images, output: (output[0] * float("inf"), output[1])
        )
    together.step(mine, 3, RADII)
    kept = all(map(torch.equal, after, weights(together))) or together.f.skipped == 1
    dist.barrier()
    dist.destroy_process_group()
    for step in range(3):
        alone.step(on_device, step, RADII)
    off = max(difference(a, b) for a, b in zip(after, weights(alone), strict=True))
    digest = str([float(value.double().sum()) for value in weights(together)])
    return off, digest, kept


def signals(machine: Machine) -> None:
    """After SIGTERM a run saves and ends; after SIGKILL of a rank the others end too."""
    table = machine.run.table("Signals to a run", "ranks", "signal", "exit code", "seconds to end")
    if _ranks(machine) < 2:
        return
    for number, to_all in ((signal.SIGTERM, True), (signal.SIGKILL, False)):
        name = number.name.lower()
        flags = ("--epochs", "2000", "--evaluate.every_epochs", "2000")
        started = machine.train(name, *flags, ranks=2, wait=False)
        try:
            state = machine.folder / "runs" / name / "metrics.jsonl"
            deadline = time.monotonic() + 200
            while not (state.exists() and state.read_text().count("\n") > 2):
                assert started.poll() is None, (started.stdout or sys.stdin).read()[-500:]
                assert time.monotonic() < deadline, "no step within 200 s"
                time.sleep(0.2)
            children = psutil.Process(started.pid).children()
            trainers = [p for p in children if "rebias_dist.train" in p.cmdline()]
            begin = time.monotonic()
            (started if to_all else trainers[-1]).send_signal(number)
            said, _ = started.communicate(timeout=120)
            assert "interrupted; saved" in said or not to_all, said[-500:]
            table.add(2, number.name, started.returncode, f"{time.monotonic() - begin:.1f}")
        finally:
            started.kill()


PARTS: dict[str, tuple[Callable[[Machine], None], float]] = {
    "environment": (environment, 0.01),
    "equal_steps": (equal_steps, 0.06),
    "objectives": (objectives, 0.12),
    "without_waiting": (without_waiting, 0.12),
    "steps": (gpu_parts.steps, 0.25),
    "resume": (resume, 0.12),
    "ranks": (ranks, 0.1),
    "signals": (signals, 0.12),
    "parts_of_a_step": (gpu_parts.parts_of_a_step, 0.05),
    "loader": (gpu_parts.loader, 0.05),
}
"""The parts by their worth, with their shares of the time."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts (default: 10)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")


def main() -> int:
    """Run the parts; return the exit code."""
    given = argparse.ArgumentParser(add_help=False)
    given.add_argument("--device", default="cuda")
    asked_for_help = {"-h", "--help"} & set(sys.argv)
    chosen = given.parse_known_args()[0].device
    if chosen == "cuda" and not torch.cuda.is_available() and not asked_for_help:
        print("error: no GPU here (torch.cuda.is_available() is false)", file=sys.stderr)
        return 2
    run = Benchmark("gpu", __doc__, arguments)
    options = run.options
    torch.set_num_threads(max(options.threads, (os.cpu_count() or 1) if not options.quick else 1))
    device = torch.device(options.device, 0) if options.device == "cuda" else CPU.device
    machine = Machine(run, device, options.quick)
    end, failed = time.monotonic() + 60 * options.minutes, {}
    for name, (part, share) in PARTS.items():
        if name not in options.only:
            continue
        if time.monotonic() > end:
            failed[name] = "no time was left"
            continue
        # Time that an earlier part did not need is there for the later ones.
        machine.until = time.monotonic() + 60 * options.minutes * share
        try:
            part(machine)
        except Exception as error:
            traceback.print_exc()
            failed[name] = next(iter(str(error).splitlines()), "") or type(error).__name__
    table = run.table("Parts", "part", "result")
    for name in options.only:
        table.add(name, failed.get(name, "fine"))
    shutil.rmtree(machine.folder, ignore_errors=True)
    run.record()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
