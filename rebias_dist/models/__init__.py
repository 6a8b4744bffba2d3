"""The networks, which return ``(logits, features)``, and :func:`build`, which makes one by name."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from rebias_dist.errors import ArgumentError
from rebias_dist.models.bagnet import BagNet18
from rebias_dist.models.last_layer import freeze_backbone, is_frozen, last_layer
from rebias_dist.models.measure import feature_dim, features_of, receptive_field
from rebias_dist.models.named_layer import (
    accepted_options,
    torchvision_names,
    torchvision_network,
    user_factory,
    user_network,
)
from rebias_dist.models.pretrained import (
    Weights,
    load_weights,
    published_weights,
    weights_of_file,
)
from rebias_dist.models.public_checkpoint import (
    PublicCheckpoint,
    load_public_checkpoint,
    load_state,
)
from rebias_dist.models.simple_convnet import SimpleConvNet
from rebias_dist.models.timm_networks import PREFIX, timm_network

__all__ = [
    "PublicCheckpoint",
    "Weights",
    "build",
    "feature_dim",
    "features_of",
    "freeze_backbone",
    "is_frozen",
    "last_layer",
    "load_public_checkpoint",
    "load_state",
    "load_weights",
    "names",
    "published_weights",
    "receptive_field",
    "weights_of_file",
]

_OWN: dict[str, Callable[..., nn.Module]] = {"simple_convnet": SimpleConvNet, "bagnet18": BagNet18}


def names() -> list[str]:
    """Return every name that :func:`build` takes, except dotted paths: ours, then torchvision's."""
    return [*_OWN, *torchvision_names()]


def build(name: str, **options: Any) -> nn.Module:
    """Build a network that maps ``[N, C, H, W]`` to ``(logits [N, num_classes], features [N, d])``.

    The initial weights come from torch's global random state: seed it before the call, alike on
    all ranks.

    A convolution bias directly before a BatchNorm has no effect in training, because the
    normalisation subtracts it again. Its gradient is rounding noise, which Adam would scale up, so
    it gets ``requires_grad=False``. It stays in the state dict.

    Args:
        name: ``simple_convnet``, ``bagnet18``, a torchvision classifier, ``timm:NAME``, or the
            dotted path of a factory, ``package.module:factory`` or ``package.module.factory``.
        options: ``num_classes`` (needed), ``feature``, and those of the network itself;
            see :class:`SimpleConvNet`, :class:`BagNet18`, :func:`torchvision_network`,
            :func:`timm_network` and :func:`user_network`.

    Raises:
        ArgumentError: an unknown name, option or layer, or a value out of range.
    """
    factory: Callable[..., nn.Module]
    if name in _OWN:
        factory = _OWN[name]
        accepted = accepted_options(factory)
    elif name in torchvision_names():
        factory = partial(torchvision_network, name)
        accepted = ["num_classes", "feature"]
    elif name.startswith(PREFIX):
        factory, accepted = partial(timm_network, name), None
    elif "." in name or ":" in name:
        own = user_factory(name)
        factory = partial(user_network, name, own)
        accepted = accepted_options(own)
        if accepted is not None and "num_classes" not in accepted:
            raise ArgumentError(
                f"network {name!r} takes no num_classes (it takes {', '.join(accepted) or 'none'})"
                "; give its factory that parameter"
            )
        if accepted is not None and "feature" not in accepted:
            accepted.append("feature")
    else:
        near = get_close_matches(name, names(), n=3, cutoff=0.5) or list(_OWN)
        raise ArgumentError(
            f"unknown network {name!r}; near names: {', '.join(near)}; name a network of your own "
            "as package.module:factory"
        )
    for option in options:
        if accepted is not None and option not in accepted:
            raise ArgumentError(
                f"{name} takes no option {option!r}; it takes {', '.join(accepted)}"
            )
    num_classes, feature = options.get("num_classes"), options.get("feature")
    if type(num_classes) is not int or num_classes < 1:
        raise ArgumentError(
            f"{name}: num_classes is {num_classes!r}; it must be a whole number from 1"
        )
    if not isinstance(feature, str | None):
        raise ArgumentError(f"{name}: feature is {feature!r}; it must be a name")
    network = factory(**options)
    _freeze_dead_biases(network)
    return network


def _freeze_dead_biases(network: nn.Module) -> None:
    """Freeze the biases of convolutions that are followed by a BatchNorm.

    Only neighbours in a Sequential count: elsewhere the order of execution is not certain.
    """
    for module in network.modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            layers = list(module)
            for layer, following in pairwise(layers):
                if (
                    isinstance(layer, _ConvNd)
                    and layer.bias is not None
                    and isinstance(following, _BatchNorm)
                ):
                    layer.bias.requires_grad_(False)
