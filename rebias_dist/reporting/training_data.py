"""The data that a run was trained on, as far as its configuration and its shards tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards.errors import DataShardsError
from data_shards.system.files import read_json
from rebias_dist.config.files import flat
from rebias_dist.config.schema import Config

_LARGEST_MANIFEST = 64 << 20  # bytes
# Options of shards that decide no figure, or that are told apart as seeds are.
_NO_SETTINGS = frozenset({"seed", "samples_per_shard", "bytes_per_shard"})


def made_with(config: Config) -> Mapping[str, Any]:
    """Return the options that the training shards were made with; empty if not at hand."""
    if config.data.root is None:
        return {}
    manifest = Path(config.data.root) / config.data.train_split / "manifest.json"
    try:
        options = read_json(manifest, _LARGEST_MANIFEST)["options"]
    except (DataShardsError, KeyError, TypeError):
        return {}
    return options if isinstance(options, dict) else {}


def rho_of(config: Config) -> float | None:
    """Return the training correlation; None where it is not known."""
    if config.data.dataset != "biased_mnist":
        return None
    if config.data.root is None:
        return config.data.rho
    rho = made_with(config).get("rho")
    return float(rho) if isinstance(rho, (int, float)) else None


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that make figures comparable, by dotted key; the seeds are left out.

    A configuration's identity leaves out where its data lie, for they may be moved. In its place
    come the options of the shards, or their folder if these are not at hand. Without a folder it
    is whether the digits are MNIST's or those that need no files.
    """
    settings = flat(config.identity())
    del settings["seed"], settings["data.seed"]
    if config.data.root is None:
        source = "unset" if config.data.source is None else "given"
        return settings | {"data.source": source}
    options = {
        f"data.{key}": value
        for key, value in made_with(config).items()
        if key not in _NO_SETTINGS and isinstance(value, (bool, int, float, str))
    }
    # With a root these fields of the configuration change nothing.
    fields = ("data.rho", "data.confusing_colours", "data.image_size")
    return (
        settings | dict.fromkeys(fields, "unknown") | (options or {"data.root": config.data.root})
    )


def seeds_of(config: Config) -> tuple[int, int]:
    """Return the seed of a run and the seed of its data, which shards bring with them."""
    seed = made_with(config).get("seed", config.data.seed)
    return config.seed, seed if isinstance(seed, int) else config.data.seed
