"""The last layer of a network, and the freezing of everything below it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebias_dist.errors import ArgumentError


def last_layer(network: nn.Module, classes: int) -> str:
    """Return the name of the layer that gives the logits: the last one that has parameters.

    Args:
        network: whose layers are listed in the order in which it defines them.
        classes: number of logits.

    Raises:
        ArgumentError: that layer does not return so many values.
    """
    name = list(network.named_parameters())[-1][0].rpartition(".")[0]
    layer = network.get_submodule(name)
    if not name or next(layer.parameters(recurse=False)).shape[0] != classes:
        raise ArgumentError(
            f"the last layer with parameters, {name or 'the network itself'}, does not give the "
            f"{classes} logits; let the network define the layer of its logits last"
        )
    return name


def freeze_backbone(network: nn.Module, classes: int) -> None:
    """Let only the last layer train; BatchNorm below it stays in evaluation mode.

    Raises:
        ArgumentError: the last layer is not known.
    """
    head = network.get_submodule(last_layer(network, classes))
    trained = {id(parameter) for parameter in head.parameters() if parameter.requires_grad}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            # network.train() would switch it back, so each forward pass sets the mode again.
            layer.register_forward_pre_hook(_stay_in_evaluation)


def _stay_in_evaluation(layer: nn.Module, inputs: Any) -> None:
    if layer.training:
        layer.eval()


def is_frozen(layer: nn.Module) -> bool:
    """Return whether a BatchNorm stays in evaluation mode."""
    return _stay_in_evaluation in layer._forward_pre_hooks.values()
