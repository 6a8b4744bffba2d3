"""How long does an optimizer step take, compared with the adamp package?

    python -m benchmarks.optimizer [--quick]

All take the same random gradients of ResNet-18's and BagNet-18's parameters. torch's fused Adam,
which does not project, shows the time of one pass over the same memory, the lower limit.
"""

import copy

import adamp
import torch

from benchmarks.harness import Benchmark, in_turn, ratio, share
from rebias_dist import models
from rebias_dist.step.adamp import AdamP


def main() -> None:
    run = Benchmark("optimizer", __doc__)
    table = run.table(
        "Milliseconds of an optimizer step, median (smallest to largest)",
        *("network", "parameters", "ours", "package", "fused Adam", "package / ours"),
        *("fused Adam's share of ours", "largest difference"),
        baselines=("package", "fused Adam"),
    )
    cases = [("simple_convnet", {"kernel_size": 1})]
    if not run.options.quick:
        cases = [("resnet18", {}), ("bagnet18", {}), ("simple_convnet", {"kernel_size": 7})]
    for name, options in cases:
        torch.manual_seed(0)
        network = models.build(name, num_classes=9, **options)
        parameters = [p for p in network.parameters() if p.requires_grad]
        gradients = [torch.randn_like(p) for p in parameters]
        optimizers = {}
        for label, cls, extra in (
            ("ours", AdamP, {}),
            ("package", adamp.AdamP, {}),
            ("fused Adam", torch.optim.Adam, {"fused": True}),
        ):
            copies = copy.deepcopy(parameters)
            for p, g in zip(copies, gradients, strict=True):
                p.grad = g.clone()
            optimizers[label] = cls(copies, lr=1e-3, weight_decay=1e-4, **extra)
        times = in_turn(
            {label: optimizer.step for label, optimizer in optimizers.items()}, least=10
        )
        ours, theirs = (
            optimizers[label].param_groups[0]["params"] for label in ("ours", "package")
        )
        off = max(
            float((a - b).detach().abs().max() / b.detach().abs().max())
            for a, b in zip(ours, theirs, strict=True)
        )
        table.add(
            name, f"{sum(p.numel() for p in parameters):,}", *times.values(),
            ratio(times["package"], times["ours"]),
            share(times["fused Adam"], times["ours"]), f"{off:.1e}",
        )  # fmt: skip
    run.record()


if __name__ == "__main__":
    main()
