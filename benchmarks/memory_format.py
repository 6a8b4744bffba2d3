"""Are networks faster with the channels last in memory?

    python -m benchmarks.memory_format [--quick]

Measures forward and backward of one network on random images, with weights and images in either
format.
"""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Benchmark, in_turn, ratio
from rebias_dist import models


def forward_and_backward(network: nn.Module, images: Tensor) -> None:
    logits, _ = network(images)
    logits.sum().backward()


def main() -> None:
    run = Benchmark("memory_format", __doc__)
    table = run.table(
        "Milliseconds, median (smallest to largest)",
        *("network", "images", "side", "channels first", "channels last", "first / last"),
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
    for name, options, b, side in cases:
        programs = {}
        for label, layout in (
            ("first", torch.contiguous_format),
            ("last", torch.channels_last),
        ):
            torch.manual_seed(0)
            network = models.build(name, num_classes=9, **options).to(memory_format=layout)
            images = torch.randn(b, 3, side, side).contiguous(memory_format=layout)
            programs[label] = partial(forward_and_backward, network, images)
        times = in_turn(programs, least=5)
        shown = f"{name} {options.get('kernel_size', '')}".strip()
        table.add(shown, b, f"{side}²", *times.values(), ratio(times["first"], times["last"]))
    run.record()


if __name__ == "__main__":
    main()
