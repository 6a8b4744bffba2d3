"""The data that a run was trained on, as far as its configuration and its shards tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards.errors import DataShardsError
from data_shards.system.files import read_json
from rebias_dist.config.files import flat
from rebias_dist.config.schema import Config

KEPT = "shards.json"
"""The file in the archive of a run with the options of its training shards."""
_DIGITS = 8  # of a hash, for a name that can be read
_LARGEST_MANIFEST = 64 << 20  # bytes
# Options of shards that decide no figure, or that are told apart as seeds are.
_NO_SETTINGS = frozenset({"seed", "samples_per_shard", "bytes_per_shard"})


def made_with(folder: Path, config: Config) -> Mapping[str, Any]:
    """Return the options of a run's training shards that are one line; empty if not at hand.

    Args:
        folder: of the run. An archive has the options itself, for its ``data.root`` is no folder of
            this machine, or by chance another one.
        config: of the run.
    """
    if config.data.root is None:
        return {}
    kept, shards = folder / KEPT, Path(config.data.root) / config.data.train_split
    try:
        path = kept if kept.exists() else shards / "manifest.json"
        options = read_json(path, _LARGEST_MANIFEST)["options"].items()
    except (AttributeError, DataShardsError, KeyError, OSError, TypeError):
        return {}
    # Anyone may have written the file; a lone surrogate cannot be printed or written.
    return {
        key: value
        for key, value in options
        if isinstance(value, (bool, int, float, str)) and f"{key}{value}".isprintable()
    }


def rho_of(config: Config, made_with: Mapping[str, Any]) -> float | None:
    """Return the training correlation; None where it is not known.

    This and the next two functions take the configuration of a run and the options of its shards.
    """
    if config.data.dataset != "biased_mnist":
        return None
    if config.data.root is None:
        return config.data.rho
    rho = made_with.get("rho")
    return float(rho) if isinstance(rho, (int, float)) and 0 <= rho <= 1 else None


def settings_of(config: Config, made_with: Mapping[str, Any]) -> dict[str, Any]:
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
    # The listing has the images; the plan adds their order and the shards they are in.
    left_out = _NO_SETTINGS | ({"plan_sha256"} if "listing_sha256" in made_with else set())
    options = {
        f"data.{key}": value[:_DIGITS] if key.endswith("_sha256") else value
        for key, value in made_with.items()
        if key not in left_out
    }
    # With a root these fields of the configuration change nothing.
    fields = ("data.rho", "data.confusing_colours", "data.image_size")
    return (
        settings | dict.fromkeys(fields, "unknown") | (options or {"data.root": config.data.root})
    )


def seeds_of(config: Config, made_with: Mapping[str, Any]) -> tuple[int, int]:
    """Return the seed of a run and the seed of its data, which shards bring with them."""
    seed = made_with.get("seed", config.data.seed)
    known = isinstance(seed, int) and 0 <= seed < 1 << 63  # as a column of pandas takes it
    return config.seed, seed if known else config.data.seed
