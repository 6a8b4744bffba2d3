"""Are networks faster with the channels last in memory?

    python -m benchmarks.memory_format [--quick]

Measures forward and backward of one network on random images, with weights and images in either
format, in float32 and in bf16 by autocast.
"""

from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.harness import Benchmark, in_turn, ratio
from rebias_dist import models
from rebias_dist.step.precision import Precision


def forward_and_backward(network: nn.Module, images: Tensor, precision: Precision) -> None:
    with precision.autocast():
        logits, _ = network(images)
    logits.sum().backward()


def main() -> None:
    run = Benchmark("memory_format", __doc__)
    table = run.table(
        "Milliseconds, median (smallest to largest)",
        *("network", "precision", "images", "side", "channels first", "channels last"),
        "first / last",
        baselines=("channels first",),
    )
    cases: list[tuple[str, dict, int, int]] = [("simple_convnet", {"kernel_size": 1}, 4, 8)]
    if not run.options.quick:
        cases = [
            ("resnet18", {}, 4, 224),
            ("bagnet18", {}, 4, 224),
            ("simple_convnet", {"kernel_size": 7}, 32, 28),
            ("simple_convnet", {"kernel_size": 1}, 32, 28),
        ]
    precisions = [Precision(name, torch.device("cpu")) for name in ("float32", "bf16")]
    for (name, options, b, side), precision in product(cases, precisions):
        programs = {}
        for label, layout in (
            ("first", torch.contiguous_format),
            ("last", torch.channels_last),
        ):
            torch.manual_seed(0)
            network = models.build(name, num_classes=9, **options).to(memory_format=layout)
            images = torch.randn(b, 3, side, side).contiguous(memory_format=layout)
            programs[label] = partial(forward_and_backward, network, images, precision)
        times = in_turn(programs, least=5)
        shown = f"{name} {options.get('kernel_size', '')}".strip()
        quotient = ratio(times["first"], times["last"])
        table.add(shown, precision.name, b, f"{side}²", *times.values(), quotient)
    run.record()


if __name__ == "__main__":
    main()
