"""Are networks faster with the channels last in memory?

    python -m benchmarks.memory_format [--quick]

Measures forward and backward of one network on random images, with weights and images in either
format, in float32 and in bf16 by autocast. A second table has simple_convnet, channels last, with
torch's mean as its average pool, whose gradient has the channels first, and with ours.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.harness import Benchmark, in_turn, ratio
from rebias_dist import models
from rebias_dist.models.pooling import average_pool
from rebias_dist.models.simple_convnet import SimpleConvNet
from rebias_dist.step.precision import Precision


def forward_and_backward(network: nn.Module, images: Tensor, precision: Precision) -> None:
    with precision.autocast():
        logits, _ = network(images)
    logits.sum().backward()


def with_pool(
    pool: Callable[[Tensor], Tensor],
    network: SimpleConvNet,
    images: Tensor,
    precision: Precision,
) -> None:
    with precision.autocast():
        logits = network.fc(pool(network.extracter(images)))
    logits.sum().backward()


def mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


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

    table = run.table(
        "Milliseconds by the average pool, channels last, median (smallest to largest)",
        *("network", "precision", "images", "side", "torch's mean", "ours", "mean / ours"),
        baselines=("torch's mean",),
    )
    b, side = (4, 8) if run.options.quick else (256, 28)
    for kernel_size, precision in product((1, 7), precisions):
        torch.manual_seed(0)
        network = SimpleConvNet(9, kernel_size=kernel_size).to(memory_format=torch.channels_last)
        images = torch.randn(b, 3, side, side).contiguous(memory_format=torch.channels_last)
        times = in_turn(
            {
                name: partial(with_pool, pool, network, images, precision)
                for name, pool in (("mean", mean), ("ours", average_pool))
            },
            least=5,
        )
        shown = f"simple_convnet {kernel_size}"
        quotient = ratio(times["mean"], times["ours"])
        table.add(shown, precision.name, b, f"{side}²", *times.values(), quotient)
    run.record()


if __name__ == "__main__":
    main()
