"""Ceilings for the operations of a step: on a GPU each is a launch, which small batches wait for.

Counted is what reaches torch's kernels. Views and fresh memory cost no launch.
"""

from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rebias_dist import models
from rebias_dist.step.batchnorm import RunningStatistics

CLASSES = 9


class Operations(TorchDispatchMode):
    """Counts the operations that torch runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        free = func.is_view or name.startswith(("empty", "new_empty", "detach", "profiler::"))
        if not free and name != "promote_types":
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    built = models.build(name, num_classes=CLASSES)
    return built.to(memory_format=torch.channels_last)


def test_batchnorm_buffers():
    """Of a step: f's pass with gradients, g's with and without, and both commits."""
    found = Operations()
    for name, without_gradient in (("resnet18", 0), ("bagnet18", 1)):
        statistics = RunningStatistics(network(name))
        with found:
            for _ in range(without_gradient):
                with statistics.protected():
                    pass
            with statistics.protected(collect=True):
                pass
            statistics.commit(1)
    print(found.total, found.by_name)
    assert found.total <= 20


def test_counters_are_hidden_in_a_pass():
    """A counter that the layers see costs an operation for each layer."""
    resnet, found = network("resnet18"), Operations()
    with RunningStatistics(resnet).protected(), torch.no_grad(), found:
        resnet(torch.zeros(2, 3, 64, 64))
    assert found.by_name["native_batch_norm"] == 20
    assert found.by_name["add_"] == 8  # the residual connections
