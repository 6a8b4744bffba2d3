"""What does a method's coupled term cost, beside the plain code of its formula, and on more ranks?

    python -m benchmarks.coupled [--quick]

The coupled terms of f's objective, value and gradient, are computed by the method as in a step,
and in the same run by the plain code of its formula: a few lines of PyTorch for one process, which
autograd differentiates. Both are in float32; 'difference' is that of the values, relative. Methods
without a coupled term are left out. SoftCon and BiasCon have two views.

The last table is SoftCon on several ranks, in processes with one thread each: by rows
(`coupled_by_rows`, as the method has it) and replicated (`coupled`: every rank does all of the
work). It has the processor time of the slowest rank, communication included.
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
from torch.nn.functional import normalize

from benchmarks.harness import Benchmark, Times, in_turn, ratio, times_of
from benchmarks.hsic import dense
from rebias_dist.methods import build
from rebias_dist.methods.base import Batch
from rebias_dist.methods.options import options_class
from rebias_dist.methods.radii import Radii
from rebias_dist.methods.softcon import softcon
from rebias_dist.objectives import Rows, coupled, coupled_by_rows, gather_features

CLASSES = 10


def same(values: Tensor) -> Tensor:
    return values[:, None] == values


def plain_contrast(x: Tensor, weights: Tensor) -> Tensor:
    """Return the loss of SoftCon and BiasCon; ``x`` has two views of each sample side by side."""
    views = normalize(torch.cat(x.chunk(2, dim=1)))
    scores = views @ views.T / 0.07
    scores = scores - scores.max(1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(views))
    weights = weights.repeat(2, 2) * others
    log_shares = scores - ((scores.exp() * others).sum(1, keepdim=True) + 1e-9).log()
    total = weights.sum(1)
    return -((weights * log_shares).sum(1) / torch.where(total == 0, 1, total)).mean()


def plain_softcon(x: Tensor, h: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    h = normalize(torch.stack([normalize(view) for view in h.chunk(2, dim=1)]).mean(0))
    return plain_contrast(x, same(labels) * (1 - h @ h.T))


def plain_biascon(x: Tensor, h: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    return plain_contrast(x, (same(labels) & ~same(bias)).float())


def plain_flac(x: Tensor, h: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    def similarity(a: Tensor) -> Tensor:
        norms = a.square().sum(1)
        squares = (norms[:, None] + norms - 2 * a @ a.T).clamp(min=0)
        return 1 / (1 + (squares + 1e-6).sqrt() ** 0.5)

    s, t = similarity(normalize(h)), similarity(normalize(x))
    threshold = (s.max() + s.min()) / 2
    chosen = (same(labels) & (s < threshold)) | (~same(labels) & (s > threshold))
    p, q = (a / ((a * chosen).sum(1, keepdim=True) + 1e-7) for a in (1 - s, t))
    p, q = p[chosen], q[chosen]
    return 110 * ((p - q) * (p.log() - q.log())).mean()


def plain_fairkl(x: Tensor, h: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    x = normalize(x)
    similarity = x @ x.T
    scores = similarity / 0.1
    scores = scores - scores.max(1, keepdim=True).values.detach()
    exponentials, others = scores.exp(), 1 - torch.eye(len(x))
    positive = same(labels) * others
    negatives = (exponentials * ~same(labels)).sum(1, keepdim=True)
    terms = positive * (scores - (exponentials + negatives + 1e-6).log())
    contrast = -(0.1 / 0.07) * (terms.sum(1) / positive.sum(1).clamp(min=1)).mean()
    sets = [a & b for a in (same(labels), ~same(labels)) for b in (same(bias), ~same(bias))]
    pa, pc, na, nc = ((similarity * members).sum() / members.sum() for members in sets)
    spa, spc, sna, snc = ((similarity * members).std() for members in sets)
    regulariser = (pc - pa) ** 2 + (na - nc) ** 2 - pc + na
    return contrast + regulariser + (spa - spc) ** 2 + (sna - snc) ** 2


def plain_end(x: Tensor, h: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    x = normalize(x)
    cosines = (x @ x.T).clamp(-1, 1).tril(-1)
    pairs = torch.ones_like(cosines).tril(-1)
    alike = sum(
        (cosines * ((bias[:, None] == b) & (bias == b))).sum().abs() for b in range(CLASSES)
    )
    apart = pairs * same(labels) * ~same(bias)
    entangle = ((1 - cosines) / 2 * apart).sum() / apart.sum()
    return 0.1 * alike / (pairs * same(bias)).sum() + 0.1 * entangle


def plain_rebias(x: Tensor, h: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    return dense(x, h, (2 * x.shape[1]) ** 0.5)


PLAIN: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "rebias": plain_rebias,
    "softcon": plain_softcon,
    "flac": plain_flac,
    "biascon": plain_biascon,
    "fairkl": plain_fairkl,
    "end": plain_end,
}


def samples(n: int, width: int, views: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features of f and of g, labels and bias labels, which agree in 9 of 10 samples."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % CLASSES
    other = torch.randint(CLASSES, (n,), generator=generator)
    bias = torch.where(torch.rand(n, generator=generator) < 0.9, labels, other)
    centres = torch.randn(CLASSES, width * views, generator=generator)
    x, h = (
        centres[of] + torch.randn(n, width * views, generator=generator) for of in (labels, bias)
    )
    return x.requires_grad_(), h, labels, bias


def by_the_method(
    name: str, views: int, x: Tensor, h: Tensor, labels: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the value of the coupled terms and its gradient by f's features, as in a step."""
    method = build(options_class(name)(name=name))
    sigma = (2 * x.shape[1]) ** 0.5
    ids, radii = torch.arange(len(x), device=x.device), Radii(sigma, (sigma,))
    batch = Batch(labels, bias, ids, views=views, radii=radii)
    gs = [gather_features(h)] if method.facts.has_g else []
    terms = method.f_coupled(gather_features(x), gs, batch)
    value = torch.stack([term.weight * term.value for term in terms]).sum()
    return value.detach(), torch.autograd.grad(value, x)[0]


def by_the_formula(
    name: str, x: Tensor, h: Tensor, labels: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    value = PLAIN[name](x, h, labels, bias)
    return value.detach(), torch.autograd.grad(value, x)[0]


# ---------------------------------------------------------------- SoftCon on several ranks


def softcon_of(own: Rows, everyone: Rows) -> Tensor:
    """Return SoftCon of rows with f's two views side by side, and g's features of one."""

    def of(rows: Rows) -> Rows:
        x, h = rows.features
        views = tuple(normalize(view) for view in x.chunk(2, dim=1))
        return Rows(views, {**rows.samples, "bias_features": h}, rows.index)

    return softcon(of(own), of(everyone))


def replicated(x: Tensor, h: Tensor, labels: Tensor) -> Tensor:
    def of_all(x: Tensor, h: Tensor, labels: Tensor) -> Tensor:
        rows = Rows((x, h), {"labels": labels}, torch.arange(len(x)))
        return softcon_of(rows, rows)

    return coupled(of_all, x, h, labels=labels, check=False)


def by_rows(x: Tensor, h: Tensor, labels: Tensor) -> Tensor:
    return coupled_by_rows(softcon_of, x, h, labels=labels, check=False)


WAYS = {"by rows": by_rows, "replicated": replicated}


def cpu_seconds_of_a_rank(
    rank: int, world: int, store: str, n: int, width: int
) -> dict[str, list[float]]:
    """Return the processor seconds of a rank for value and gradient, by way."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    x, h, labels, _ = samples(n, width, 2)
    own = slice(rank * n // world, (rank + 1) * n // world)
    x, h, labels = x.detach()[own].requires_grad_(), h[own, :width], labels[own]
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(4):
        for name, way in WAYS.items():
            dist.barrier()
            begin = time.process_time()
            torch.autograd.grad(way(x, h, labels), x)
            if repeat:  # the first is a warm-up
                taken[name].append(time.process_time() - begin)
    dist.barrier()
    dist.destroy_process_group()
    return taken


def slowest_rank(world: int, n: int, width: int) -> dict[str, Times]:
    with tempfile.TemporaryDirectory() as folder:
        cases = [(rank, world, str(Path(folder) / "store"), n, width) for rank in range(world)]
        with multiprocessing.get_context("spawn").Pool(world) as pool:
            found = pool.starmap(cpu_seconds_of_a_rank, cases, chunksize=1)
    return {
        name: max((times_of(taken[name]) for taken in found), key=lambda times: times.smallest)
        for name in WAYS
    }


def main() -> None:
    run = Benchmark("coupled", __doc__)
    quick = run.options.quick
    widths = (16,) if quick else (128, 512)
    sizes = (64,) if quick else (256, 2048)

    speed = run.table(
        "Milliseconds of the coupled terms and their gradient, median (smallest to largest)",
        *("method", "N", "d", "ours", "plain", "plain / ours", "difference"),
        baselines=("plain",),
    )
    for name in PLAIN:
        views = 2 if name in ("softcon", "biascon") else 1
        for n in sizes:
            for width in widths:
                case = samples(n, width, views)
                ours = partial(by_the_method, name, views, *case)
                plain = partial(by_the_formula, name, *case)
                times = in_turn({"ours": ours, "plain": plain}, least=20 if n <= 512 else 3)
                values = [float(program()[0]) for program in (ours, plain)]
                off = f"{abs(values[0] / values[1] - 1):.1e}"
                speedup = ratio(times["plain"], times["ours"])
                speed.add(name, n, width, times["ours"], times["plain"], speedup, off)

    ranks = run.table(
        "SoftCon: milliseconds of processor of the slowest rank (gloo, one thread each)",
        *("N", "d", "W", "by rows", "replicated", "replicated / by rows"),
        baselines=("replicated",),
    )
    for n in sizes:
        for width in widths:
            world = 2 if quick else 4
            found = slowest_rank(world, n, width)
            speedup = ratio(found["replicated"], found["by rows"])
            ranks.add(n, width, world, found["by rows"], found["replicated"], speedup)
    run.record()


if __name__ == "__main__":
    main()
