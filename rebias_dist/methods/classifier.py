"""The classifier of a network, for methods that change what it sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import TrainingSet


def linear_classifier(network: nn.Module, training: TrainingSet, method: str) -> nn.Linear:
    """Return the linear layer with a bias that makes a network's logits from its features.

    Args:
        network: f.
        training: with the shape of the images.
        method: its name, for the message.

    Raises:
        ConfigError: the logits are not one linear layer of the features.
    """
    logits, features = probe(network, training)
    for layer in network.modules():
        if (
            isinstance(layer, nn.Linear)
            and layer.bias is not None
            and layer.in_features == features.shape[1]
            and layer.out_features == logits.shape[1]
        ):
            with torch.no_grad():
                if torch.allclose(layer(features), logits, atol=1e-4):
                    return layer
    raise ConfigError(
        f"f.feature: {method} needs a network whose logits are one linear layer, with a bias, of "
        "its features; take the features before the last layer"
    )


def probe(network: nn.Module, training: TrainingSet) -> tuple[Tensor, Tensor]:
    """Return a network's logits and features in evaluation mode for two images of noise."""
    parameter, mode = next(network.parameters()), network.training
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *training.shape), generator=generator).to(parameter)
    network.eval()
    try:
        with torch.no_grad():
            logits, features = network(images)
    finally:
        network.train(mode)
    return logits, features
