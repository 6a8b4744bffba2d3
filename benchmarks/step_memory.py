"""What is the peak memory of a step of the game, compared with the public algorithm?

    python -m benchmarks.step_memory [--quick]

It is the memory that the steps of benchmarks.step add to a new process with the networks and the
batch: activations, gradients, kernels, optimizer states. Three steps are taken, because the first
may need less. Each number is the smallest of three processes.
"""

from collections.abc import Callable

import adamp
import torch

from benchmarks.harness import Benchmark, Megabytes, in_fresh_process, peak_growth
from benchmarks.step import CONVNETS, RADII, RESNET, Pair, batches_of, build_game, public

_CASES: dict[str, tuple[str, Pair, int, int]] = {
    "convnets": ("simple_convnet 7 and 1", CONVNETS, 256, 28),
    "resnet": ("ResNet-18, BagNet-18", RESNET, 16, 224),
}
_STEPS = 3


def megabytes(case: str, parts: int, quick: bool) -> float:
    """Return the megabytes that the steps add; ``parts`` 0 means the public algorithm."""
    torch.set_num_threads(1)
    _, pair, samples, side = _CASES[case]
    if quick:
        samples, side = 16, 14
    batches = batches_of(samples, parts or 1, side)
    step: Callable[[], object]
    if parts:
        game = build_game(pair, samples, parts)

        def step() -> None:
            game.step(batches, 0, RADII)
    else:
        theirs = build_game(pair, samples, 1, torch.contiguous_format)
        for player in (theirs.f, *theirs.gs):
            assert player is not None
            player.optimizer = adamp.AdamP(player.parameters, lr=1e-3, weight_decay=1e-4)

        def step() -> None:
            public(theirs, batches)

    return peak_growth(lambda: [step() for _ in range(_STEPS)])


def main() -> None:
    """Print the table."""
    run = Benchmark("step_memory", __doc__)
    quick = run.options.quick
    table = run.table(
        "MB that steps add at their peak, in a fresh process",
        *("networks", "N", "image", "public", "ours", "public / ours", "ours, 4 micro-batches"),
        baselines=("public",),
    )
    for case in ("convnets",) if quick else _CASES:
        name, _, samples, side = _CASES[case]
        found = {
            parts: min(
                in_fresh_process(megabytes, case, parts, quick) for _ in range(1 if quick else 3)
            )
            for parts in (0, 1, 4)
        }
        table.add(
            name, samples, f"{side}²", Megabytes(found[0]), Megabytes(found[1]),
            f"{found[0] / found[1]:.2f}", Megabytes(found[4]),
        )  # fmt: skip
    run.record()


if __name__ == "__main__":
    main()
