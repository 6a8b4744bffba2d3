"""The command that trains a run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
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
from rebias_dist.methods.options import OPTIONS, MethodConfig


def command_of(config: Config) -> str | None:
    """Return a command line, safe to paste into a shell, whose configuration is this one.

    It names a shipped configuration of the method and the data set, of several the nearest, and
    sets the rest by flags. The name and the folder of runs are left out. None where flags cannot
    set a value: they unset no text, and no command has a text with control characters.
    """
    wanted = config.model_dump(exclude={"name", "runs_dir"})
    commands = []
    for name, values in _shipped():
        flags = [_flag(*found) for found in _differences(values, wanted, Config)]
        if None not in flags:
            words = ["--config", name, *(word for flag in flags for word in flag or ())]
            others = [
                values[section][key] != wanted[section][key]
                for section, key in (("method", "name"), ("data", "dataset"))
            ]
            of_method = name.endswith(f"/{wanted['method']['name']}")
            commands.append((sum(others), len(words), not of_method, words))
    return shlex.join(["rebias-train", *min(commands)[-1]]) if commands else None


@cache
def _shipped() -> tuple[tuple[str, dict[str, Any]], ...]:
    names = [name for name, _ in list_configs() if "/sweeps/" not in name]
    return tuple((name, validate(read_config_file(name)).model_dump()) for name in names)


def _differences(
    have: Mapping[str, Any], wanted: Mapping[str, Any], section: type[BaseModel], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key, the wanted value and the annotation of each field that differs."""
    for key, value in wanted.items():
        # A user's method may have options of which nothing is known here.
        field = section.model_fields.get(key)
        there: Any = have.get(key)
        annotation = Any if field is None else field.annotation
        inner = section_of(annotation)
        if inner is MethodConfig and value["name"] in OPTIONS:
            inner = OPTIONS[value["name"]]
            there = {**inner(name=value["name"]).model_dump(), **(there or {})}
        if there == value:
            continue
        if inner is not None and isinstance(value, dict):
            yield from _differences(there, value, inner, f"{prefix}{key}.")
        elif inner is not None and len(there) == len(value):
            for index, (old, new) in enumerate(zip(there, value, strict=True)):
                yield from _differences(old, new, inner, f"{prefix}{key}.{index}.")
        else:
            yield f"{prefix}{key}", value, annotation


def _flag(key: str, value: Any, annotation: Any) -> list[str] | None:
    """Return the words that set a field, None where a flag cannot."""
    if annotation not in (str, str | None):
        text = _as_yaml(value)
    elif value not in (None, "null") and value.isprintable():  # as a flag, null unsets a field
        text = value
    else:
        return None
    # A value that opens with a hyphen would be taken for a flag.
    return [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]


def _as_yaml(value: Any) -> str:
    if isinstance(value, str) and value.isalnum() and parse_yaml(value, "") == value:
        return value
    text = json.dumps(value, ensure_ascii=False)
    # YAML reads JSON, except for characters that it wants escaped.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
