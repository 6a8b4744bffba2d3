"""The networks of timm, an optional package, by ``timm:NAME``."""

from __future__ import annotations

from difflib import get_close_matches
from types import ModuleType
from typing import Any

from torch import nn

from rebias_dist.errors import ArgumentError
from rebias_dist.models.named_layer import with_features

PREFIX = "timm:"


def _timm() -> ModuleType:
    try:
        import timm  # takes seconds, and not everyone installs it
    except ImportError:
        raise ArgumentError(
            "networks of timm need the package timm; pip install 'rebias-dist[timm]'"
        ) from None
    return timm


def create(name: str, **options: Any) -> nn.Module:
    """Return ``timm.create_model`` of a name with the prefix.

    Raises:
        ArgumentError: timm is not installed, does not know the network, or refuses an option.
    """
    timm, bare = _timm(), name.removeprefix(PREFIX)
    if not timm.is_model(bare):
        near = get_close_matches(bare, timm.list_models(), n=3, cutoff=0.5)
        raise ArgumentError(f"timm has no network {bare!r}; near names: {', '.join(near) or '–'}")
    try:
        network: nn.Module = timm.create_model(bare, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArgumentError(f"network {name!r} cannot be built: {reason}") from error
    return network


def timm_network(
    name: str, num_classes: int, feature: str | None = None, **options: Any
) -> nn.Module:
    """Build a network of timm, untrained; it keeps timm's parameter names.

    Args:
        name: ``timm:`` and the name in timm.
        num_classes: number of logits.
        feature: the layer whose output is the feature; None: what enters timm's classifier, as
            ``forward_head(pre_logits=True)`` returns it. Either is pooled to ``[N, d]``.
        options: further arguments of ``timm.create_model``, such as ``img_size``.

    Raises:
        ArgumentError: as :func:`create`; or there is no such layer, or no single classifier.
    """
    for option in ("pretrained", "checkpoint_path"):
        if option in options:
            raise ArgumentError(f"{name}: set 'pretrained' of the network, not options.{option}")
    network = create(name, num_classes=num_classes, **options)
    classifier: Any = network.get_classifier()  # type: ignore[operator]  # a method of timm's
    last = [layer for layer, module in network.named_modules() if module is classifier]
    if feature is None and not last:
        raise ArgumentError(
            f"{name} has no single classifier; name the layer of its features as 'feature'"
        )
    return with_features(
        network,
        name=name,
        feature=feature,
        num_classes=num_classes,
        last=last[0] if last else None,
    )
