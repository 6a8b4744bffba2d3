"""BagNet-18: a ResNet-18 whose kernels are nearly all 1×1, so that it sees only texture.

Brendel & Bethge, "Approximating CNNs with Bag-of-local-Features models" (ICLR
2019), in the variant that ReBias (Bahng et al., ICML 2020, section 4.3) trains as
its biased network: one 3×3 kernel in the stem and one in the first block, the rest
1×1, no padding. Each position before the pool sees 5×5 pixels.
"""

from math import sqrt

from torch import Tensor, nn

from rebias_dist.errors import ArgumentError
from rebias_dist.models.pooling import average_pool

STAGES = ((64, 2), (128, 2), (256, 2), (512, 1))  # (channels, stride of the first block)


class Block(nn.Module):
    """A residual block without padding; the identity is cropped to the size of the convolutions."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        """Make the layers with torch's default weights; :class:`BagNet18` draws others later."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, channels, (H-k)//s + 1, (W-k)//s + 1]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        # Without padding a 3×3 kernel loses rows and columns. Both paths start at the upper left
        # corner, so the identity loses them at the right and lower edges.
        height, width = out.shape[-2:]
        merged: Tensor = self.relu(out + identity[..., :height, :width])
        return merged


class BagNet18(nn.Module):
    """Stem, four stages of two blocks with strides 2, 2, 2, 1, global average pool, linear.

    Input ``[N, 3, H, W]`` with H, W ≥ 5, any float dtype; returns logits ``[N, num_classes]`` and
    the pooled features ``[N, 512]``. The state dict has the public code's names:
    ``conv1 conv2 bn1 layer1…4 fc``.

    Args:
        num_classes: number of logits.
        feature: ``pool`` or None, which mean the same.

    Raises:
        ArgumentError: ``feature`` is something else.
    """

    def __init__(self, num_classes: int, feature: str | None = None) -> None:
        """Check the options and draw the initial weights."""
        super().__init__()
        if feature not in (None, "pool"):
            raise ArgumentError(f"bagnet18: feature is {feature!r}; it must be 'pool'")
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 64, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, momentum=0.001)
        self.relu = nn.ReLU(inplace=True)
        in_channels = 64
        for number, (channels, stride) in enumerate(STAGES, start=1):
            stage = nn.Sequential(
                Block(in_channels, channels, kernel_size=3 if number == 1 else 1, stride=stride),
                Block(channels, channels, kernel_size=1, stride=1),
            )
            self.add_module(f"layer{number}", stage)
            in_channels = channels
        self.fc = nn.Linear(in_channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, sqrt(2.0 / fan_out))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[N, 3, H, W]`` to logits ``[N, num_classes]`` and features ``[N, 512]``."""
        x = self.relu(self.bn1(self.conv2(self.conv1(images))))
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        features = average_pool(x)
        return self.fc(features), features
