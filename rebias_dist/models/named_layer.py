"""Any classifier, torchvision's or the user's own, with a named layer as its feature.

Two forward hooks add the features to what the network returns. So it keeps its own class and
parameter names, and a checkpoint of the bare network can be loaded.
"""

import inspect
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torchvision.models  # type: ignore[import-untyped]
from torch import Tensor, nn

from rebias_dist.errors import ArgumentError
from rebias_dist.models.pooling import average_pool

# With their auxiliary classifiers these networks return more than logits in training.
_WITHOUT_AUXILIARY = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
_RESIDUAL = ("resnet", "resnext", "wide_resnet")


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers, sorted."""
    return sorted(torchvision.models.list_models(module=torchvision.models))


class _FeatureTap:
    """Hooks that turn ``network(x) -> logits`` into ``network(x) -> (logits, features)``.

    The hooks are bound methods, not closures, so that a deep copy of the network gets its own tap.
    """

    def __init__(self, name: str, feature: str | None, num_classes: int) -> None:
        self.name = name
        self.feature = feature
        self.num_classes = num_classes
        self.has_class_token = False
        self.kept: Tensor | None = None

    def keep_input(self, module: nn.Module, inputs: Any) -> None:
        """Keep the input of the last layer; a forward pre-hook of that layer."""
        self.kept = inputs[0]

    def keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep the output of the named layer; a forward hook of that layer."""
        if not isinstance(output, Tensor):
            raise ArgumentError(
                f"{self.name}: layer {self.feature!r} returns {type(output).__name__}, not one "
                "tensor; name another layer as 'feature'"
            )
        # A copy, because the next layer may change this output in place.
        self.kept = output.clone()

    def attach(self, module: nn.Module, inputs: Any, output: Any) -> tuple[Tensor, Tensor]:
        """Return the logits and the features as ``[N, d]``; a forward hook of the network.

        A map ``[N, C, H, W]`` is averaged over its positions. Of tokens ``[N, T, d]`` the first is
        taken where the network has a class token, else their mean.
        """
        if self.feature is None:
            if not (
                isinstance(output, tuple)
                and len(output) == 2
                and all(isinstance(part, Tensor) for part in output)
            ):
                raise ArgumentError(
                    f"{self.name} returns {_describe(output)}, not (logits, features); return "
                    "both, or name the layer that gives the features as 'feature'"
                )
            logits, features = output
        else:
            logits, features, self.kept = output, self.kept, None
            if not isinstance(logits, Tensor):
                raise ArgumentError(
                    f"{self.name} returns {_describe(logits)}; with a named layer as its feature "
                    f"({self.feature!r}) it must return only logits"
                )
            if features is None:
                raise ArgumentError(
                    f"{self.name}: its forward pass never calls layer {self.feature!r}; name "
                    "another layer as 'feature'"
                )
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ArgumentError(
                f"{self.name} returns logits of shape {list(logits.shape)}; "
                f"num_classes={self.num_classes} needs [N, {self.num_classes}]"
            )
        if features.ndim < 2 or features.shape[0] != logits.shape[0]:
            source = "its features" if self.feature is None else f"layer {self.feature!r}"
            raise ArgumentError(
                f"{self.name}: {source} of shape {list(features.shape)} do not have one row for "
                f"each of {logits.shape[0]} images; name another layer as 'feature'"
            )
        return logits, self._pooled(features)

    def _pooled(self, features: Tensor) -> Tensor:
        if features.ndim == 2:
            return features
        if features.ndim == 3:
            return features[:, 0] if self.has_class_token else features.mean(dim=1)
        if features.ndim == 4:
            single = features.shape[2:] == (1, 1)
            return features.flatten(1) if single else average_pool(features)
        raise ArgumentError(
            f"{self.name}: its features have the shape {list(features.shape)}; they must be "
            "[N, d], tokens [N, T, d] or a map [N, C, H, W]"
        )


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return f"one tensor of shape {list(output.shape)}"
    return f"a {type(output).__name__}"


def with_features(
    network: nn.Module,
    *,
    name: str,
    feature: str | None,
    num_classes: int,
    last: str | None = None,
) -> nn.Module:
    """Let a network return ``(logits, features)`` by hooks.

    Args:
        network: returns logits; or, without ``feature`` and ``last``, both.
        name: of the network, for messages.
        feature: the layer whose output is the feature.
        num_classes: number of logits.
        last: without ``feature``: the last layer, whose input is the feature.

    Raises:
        ArgumentError: there is no such layer.
    """
    tap = _FeatureTap(name, feature, num_classes)
    tap.has_class_token = any(
        isinstance(getattr(module, attribute, None), Tensor)  # torchvision's name, and timm's
        for module in network.modules()
        for attribute in ("class_token", "cls_token")
    )
    if feature is None and last is not None:
        tap.feature = f"before {last}"
        network.get_submodule(last).register_forward_pre_hook(tap.keep_input)
    elif feature is not None:
        layers = dict(network.named_modules())
        if not feature or feature not in layers:
            near = get_close_matches(feature, layers, n=5, cutoff=0.5)
            near = near or [layer for layer, _ in network.named_children()]
            raise ArgumentError(f"{name} has no layer {feature!r}; near names: {', '.join(near)}")
        layers[feature].register_forward_hook(tap.keep)
    network.register_forward_hook(tap.attach)
    return network


def torchvision_network(name: str, num_classes: int, feature: str | None = None) -> nn.Module:
    """Build torchvision's classifier ``name``, untrained; it keeps torchvision's parameter names.

    Args:
        name: as ``torchvision.models.list_models`` writes it.
        num_classes: number of logits.
        feature: the layer whose output, pooled to ``[N, d]``, is the feature. For the ResNets,
            None and ``pool`` mean their pooled features; for the vision transformers None means the
            class token.

    Raises:
        ArgumentError: there is no such layer, or None is given for another network.
    """
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **_WITHOUT_AUXILIARY.get(name, {})
    )
    if name.startswith(_RESIDUAL) and feature in (None, "pool"):
        feature = "avgpool"
    elif name.startswith("vit_") and feature is None:
        feature = "encoder"
    if feature is None:
        layers = ", ".join(layer for layer, _ in network.named_children())
        raise ArgumentError(
            f"{name} needs 'feature', the layer whose output is its feature; "
            f"its top-level layers: {layers}"
        )
    return with_features(network, name=name, feature=feature, num_classes=num_classes)


def user_factory(path: str) -> Callable[..., Any]:
    """Import ``package.module:factory`` or ``package.module.factory``.

    Raises:
        ArgumentError: it cannot be imported or cannot be called.
    """
    try:
        factory = pkgutil.resolve_name(path)
    except Exception as error:  # the module may fail in any way
        raise ArgumentError(
            f"network {path!r} cannot be imported ({_one_line(error)}); write it as "
            f"package.module:factory, importable where the run starts"
        ) from error
    if not callable(factory):
        raise ArgumentError(
            f"network {path!r} is not callable but of type {type(factory).__name__}; name the "
            "function or class that builds it"
        )
    return factory  # type: ignore[no-any-return]  # resolve_name returns Any


def accepted_options(factory: Callable[..., Any]) -> list[str] | None:
    """Return the names of the options of ``factory``; None if it takes any or they are unknown."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def user_network(
    path: str,
    factory: Callable[..., Any],
    num_classes: int,
    feature: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network by ``factory(num_classes=…, **options)``; it returns ``(logits, features)``.

    Args:
        path: the factory's name in the configuration, for messages.
        factory: from :func:`user_factory`; returns an ``nn.Module``.
        num_classes: number of logits; the forward pass checks it.
        feature: the layer whose output, pooled to ``[N, d]``, is the feature; None
            for a network that itself returns ``(logits, features)``.
        options: further keyword arguments of the factory.

    Raises:
        ArgumentError: the factory fails, does not return a module, or its network has no such
            layer. The network's forward pass raises it if the logits or
            features have another type or shape.
    """
    try:
        network = factory(num_classes=num_classes, **options)
    except Exception as error:  # the factory may fail in any way
        raise ArgumentError(
            f"network {path!r} cannot be built ({_one_line(error)}); correct the factory or its "
            "options"
        ) from error
    if not isinstance(network, nn.Module):
        raise ArgumentError(
            f"network {path!r} builds an object of type {type(network).__name__}; its factory "
            "must return an nn.Module"
        )
    return with_features(network, name=path, feature=feature, num_classes=num_classes)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
