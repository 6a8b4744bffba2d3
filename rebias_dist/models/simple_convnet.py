"""The small network of Biased-MNIST, whose kernel size k bounds the receptive field.

ReBias (Bahng et al., ICML 2020), section 4.2: k = 7 for f and k = 1 for g, which then sees only
single pixels and can learn nothing but colour.
"""

from math import gcd, inf

import torch
from torch import Tensor, nn

from rebias_dist.errors import ArgumentError
from rebias_dist.models.pooling import average_pool

CHANNELS = (16, 32, 64, 128)
FEATURES = ("post", "pre", "logits")


def _batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


def _group_norm(channels: int) -> nn.Module:
    # Eight groups, or the largest divisor of 8 that divides the number of channels.
    return nn.GroupNorm(gcd(channels, 8), channels)


def _no_norm(channels: int) -> nn.Module:
    # An Identity, so that the layers keep their numbers and thus their names in the state dict.
    return nn.Identity()


NORMS = {"batch": _batch_norm, "group": _group_norm, "none": _no_norm}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


class SimpleConvNet(nn.Module):
    """Four blocks of convolution, normalisation and ReLU, global average pool, linear.

    Input ``[N, in_channels, H, W]``, any float dtype; returns ``(logits, features)``,
    ``[N, num_classes]`` and ``[N, d]``. The state dict has the public code's names:
    ``extracter.{0,1,3,4,6,7,9,10}`` and ``fc``.

    Args:
        num_classes: number of logits.
        kernel_size: k of all four convolutions, padded by k // 2.
        width: factor on the channels 16, 32, 64, 128 (rounded, at least 1).
        norm: ``batch``, ``group`` (8 groups) or ``none``.
        dropout: probability, before the linear layer only; features are never dropped.
        feature: ``post`` (the default): the average pool, d = channels; ``pre``: the flattened
            map before it, d = channels·H·W; ``logits``: the logits.
        in_channels: number of channels of the images.

    Raises:
        ArgumentError: an option has a value outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        kernel_size: int = 7,
        width: float = 1.0,
        norm: str = "batch",
        dropout: float = 0.0,
        feature: str | None = None,
        in_channels: int = 3,
    ) -> None:
        """Check the options and draw the initial weights."""
        super().__init__()
        feature = "post" if feature is None else feature
        for option, value, fits, values in (
            ("kernel_size", kernel_size, _is_count(kernel_size), "a whole number from 1"),
            ("width", width, _is_number(width) and 0 < width < inf, "a number greater than 0"),
            ("norm", norm, norm in tuple(NORMS), "one of " + ", ".join(NORMS)),
            ("dropout", dropout, _is_number(dropout) and 0 <= dropout < 1, "from 0 to below 1"),
            ("feature", feature, feature in FEATURES, "one of " + ", ".join(FEATURES)),
            ("in_channels", in_channels, _is_count(in_channels), "a whole number from 1"),
        ):
            if not fits:
                raise ArgumentError(f"simple_convnet: {option} is {value!r}; it must be {values}")
        self.feature = feature
        self.num_classes = num_classes

        layers: list[nn.Module] = []
        channels = in_channels
        for full in CHANNELS:
            out = max(1, round(full * width))
            layers += [
                nn.Conv2d(channels, out, kernel_size, padding=kernel_size // 2),
                NORMS[norm](out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        self.extracter = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[N, in_channels, H, W]`` to logits ``[N, num_classes]`` and features ``[N, d]``."""
        maps = self.extracter(images)
        pooled = average_pool(maps)
        logits = self.fc(self.dropout(pooled))
        if self.feature == "pre":
            return logits, torch.flatten(maps, 1)
        return logits, pooled if self.feature == "post" else logits
