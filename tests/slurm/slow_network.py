"""A slow SimpleConvNet, so that a run lasts long enough to be disturbed."""

import time
from typing import Any

from torch import Tensor

from rebias_dist.models.simple_convnet import SimpleConvNet


class SlowConvNet(SimpleConvNet):
    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._seconds = seconds

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            time.sleep(self._seconds)
        return super().forward(images)


def build(num_classes: int, seconds: float = 0.0, **options: Any) -> SlowConvNet:
    """Return the network; the configuration names this function."""
    return SlowConvNet(seconds, num_classes=num_classes, **options)
