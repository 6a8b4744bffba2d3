"""Finding runs by their names."""

from __future__ import annotations

from rebias_dist.config import RUN_NAME
from rebias_dist.errors import ConfigError


def check_name(name: str) -> str:
    """Return a run's name, or raise ``ConfigError`` if it could not be one."""
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"name: {name!r} cannot name a run; use letters, digits and . _ + = - "
            "(a run in another folder is found with --runs-dir)"
        )
    return name
