"""User networks that the tests name by dotted path."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

NOT_A_FACTORY = 3


def tiny(num_classes: int, channels: int = 4) -> nn.Module:
    """Logits only; its second ReLU works in place on the convolution's output."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )


class Pair(nn.Module):
    """Returns (logits, features), the features as a map."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.unused = nn.Conv2d(3, 5, 3)
        self.fc = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.conv(images)
        return self.fc(maps.mean(dim=(2, 3))), maps


class Windows(nn.Module):
    """Calls a layer on four windows of each image, and never calls another."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.window = nn.Linear(12, options["num_classes"])
        self.unused = nn.Linear(1, 1)
        self.several = Several()

    def forward(self, images: Tensor) -> Tensor:
        self.several(images)
        return self.window(images.reshape(-1, 12)).reshape(len(images), 4, -1).sum(dim=1)


class Several(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, images]


def deaf(num_classes: int) -> nn.Module:
    """Ignores num_classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 7))


def no_classes(width: int) -> nn.Module:
    return nn.Linear(width, width)


def not_a_module(num_classes: int) -> Tensor:
    return torch.zeros(num_classes)


def vit(num_classes: int, image_size: int = 28) -> nn.Module:
    """A small vision transformer of torchvision: four patches and a class token."""
    return VisionTransformer(image_size, image_size // 2, 1, 2, 24, 32, num_classes=num_classes)


class Tokens(nn.Module):
    """Four tokens of 6 numbers, without a class token; the logits are of their mean."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.tokens = nn.Flatten(2)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.tokens(self.conv(images)).mean(dim=1))
        return logits


class Detached(nn.Module):
    """Returns features that carry no gradients."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(images).mean(dim=(2, 3))
        return self.fc(features), features.detach()


class Wide(nn.Module):
    """Returns 5,000 features."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Linear(3, 5000)
        self.fc = nn.Linear(5000, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images.mean(dim=(2, 3)))
        return self.fc(features), features
