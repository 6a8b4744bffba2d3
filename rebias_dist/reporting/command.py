"""The command that trains a run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from rebias_dist.config.files import (
    list_configs,
    parse_yaml,
    read_config_file,
    section_of,
    validate,
)
from rebias_dist.config.schema import Config

# Where the run lies and what it is called is for whoever repeats it to say.
_NOT_REPEATED = frozenset({"name", "runs_dir"})


def command_of(config: Config) -> str | None:
    """Return a command line, safe to paste into a shell, whose configuration is this one.

    It names the shipped configuration that is nearest and sets the rest by flags; the name and
    the folder of runs are left out. None where flags cannot say it: they unset no text, and a
    text with control characters is for no terminal.
    """
    wanted = config.model_dump()
    found: list[tuple[str, list[str]]] = []
    for name, values in _shipped():
        try:
            found.append((name, _flags(values, wanted, Config, "")))
        except _CannotSay:
            continue
    if not found:
        return None
    name, flags = min(found, key=lambda candidate: len(candidate[1]))
    return shlex.join(["rebias-train", "--config", name, *flags])


class _CannotSay(Exception):  # noqa: N818 - an answer, not a mistake
    """A flag cannot set this."""


@cache
def _shipped() -> tuple[tuple[str, dict[str, Any]], ...]:
    names = [name for name, _ in list_configs() if "/sweeps/" not in name]
    return tuple((name, validate(read_config_file(name)).model_dump()) for name in names)


def _flags(
    have: Mapping[str, Any], wanted: Mapping[str, Any], section: type[BaseModel], prefix: str
) -> list[str]:
    flags: list[str] = []
    for key, value in wanted.items():
        there, annotation = have[key], section.model_fields[key].annotation
        if there == value or prefix + key in _NOT_REPEATED:
            continue
        inner = section_of(annotation)
        if inner is not None and isinstance(value, dict):
            flags += _flags(there, value, inner, f"{prefix}{key}.")
        elif inner is not None and len(there) == len(value):
            for index, (old, new) in enumerate(zip(there, value, strict=True)):
                flags += _flags(old, new, inner, f"{prefix}{key}.{index}.")
        else:
            text = _raw(value) if annotation in (str, str | None) else _as_yaml(value)
            # A value that opens with a hyphen would be taken for a flag.
            flag = f"--{prefix}{key}"
            flags += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return flags


def _raw(value: str | None) -> str:
    if value is None or not value.isprintable():
        raise _CannotSay
    return value


def _as_yaml(value: Any) -> str:
    if isinstance(value, str) and value.isalnum() and parse_yaml(value, "") == value:
        return value
    text = json.dumps(value, ensure_ascii=False)
    # YAML reads JSON, but for characters that it wants escaped.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
