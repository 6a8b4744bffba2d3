"""Configuration files: strict YAML in, one clear line out when something is wrong."""

from __future__ import annotations

import difflib
import itertools
import math
import os
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.methods.options import MethodConfig, options_class

DEFAULT_CONFIG = "biased_mnist/demo"

_SHOWN = 80  # characters of a wrong value in a message


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and aliases, and reads 1e-3 as a number.

    YAML 1.1 reads ``1e-3`` (no dot) as text. Aliases are refused because a few of them can
    expand to gigabytes.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise ConfigError(f"line {event.start_mark.line + 1}: YAML aliases are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: the key {key!r} is not a name")
            if key in seen:
                raise ConfigError(f"line {line}: the key {key!r} is given twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that the loader above reads back; it quotes texts that look like 1e3."""


for _side in (_StrictLoader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text; ``where`` (a file or a flag) opens the message of a ``ConfigError``."""
    try:
        # Derived from SafeLoader: it builds plain values only.
        return yaml.load(text, _StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: {line}{problem}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from None


def configs_folder() -> Path:
    """Return the folder of the shipped configurations, installed or in a checkout."""
    checkout = Path(__file__).resolve().parents[2] / "configs"
    if checkout.is_dir() and (checkout.parent / "setup.cfg").is_file():
        return checkout
    return Path(__file__).resolve().parents[1] / "configs"


def list_configs() -> Iterator[tuple[str, str]]:
    """Yield the name and the first comment line of each shipped configuration."""
    folder = configs_folder()
    for path in sorted(folder.glob("*/*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield path.relative_to(folder).with_suffix("").as_posix(), first.lstrip("# ")


def config_comment(name: str) -> str:
    """Return the comment that opens a configuration: command, cost, what to expect."""
    lines = find_config(name).read_text(encoding="utf-8").splitlines()
    opening = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in opening)


def find_config(name: str) -> Path:
    """Return the path of a configuration given as a file or as the name of a shipped one."""
    given = Path(os.path.expanduser(name))
    if given.is_file():
        return given
    shipped = configs_folder() / name.removeprefix("configs/").removesuffix(".yaml")
    path = shipped.with_name(shipped.name + ".yaml")
    if path.is_file() and path.resolve().is_relative_to(configs_folder().resolve()):
        return path
    names = [known for known, _ in list_configs()]
    raise ConfigError(
        f"config: no file {name!r} and no shipped configuration; {_nearest(name, names)}"
    )


def read_config_file(name: str) -> dict[str, Any]:
    """Read a configuration file into a plain mapping, unvalidated."""
    path = find_config(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} cannot be read: {error}") from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of names to values")
    return values


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's type is or lists, or None for a plain value."""
    arguments = typing.get_args(annotation)
    # Python 3.10 takes list[int] for a type.
    if not arguments and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (section_of(argument) for argument in arguments)
    return next((section for section in inner if section is not None), None)


def _fields_at(location: tuple[int | str, ...], values: Any) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = section_of(model.model_fields[part].annotation) or model
    if model is MethodConfig:
        model = options_class(values["method"].get("name", MethodConfig().name))
        return [name for name in model.model_fields if name not in model.unused()]
    return list(model.model_fields)


def validate(values: dict[str, Any], where: str = "", *, own_method: bool = True) -> Config:
    """Build the typed configuration, or raise ``ConfigError`` with one line for the first fault.

    Args:
        values: of the file or the flags.
        where: what opens the message.
        own_method: import a user's method to check its options. Without it, nothing that a
            recorded run names is imported, its options are taken as they are, and so is a
            ``data.crop`` above ``data.resize``: earlier versions trained with it.
    """
    try:
        return Config.model_validate(values, context={"import": own_method})
    except ValidationError as invalid:
        prefix = f"{where}: " if where else ""
        raise ConfigError(
            prefix + first_fault(invalid, values, lambda at: _fields_at(at, values))
        ) from None


def first_fault(
    invalid: ValidationError,
    values: dict[str, Any],
    keys_at: Callable[[tuple[int | str, ...]], list[str]],
) -> str:
    """Return the first fault of a file's ``values`` as one line: the key, its value and the cure.

    ``keys_at`` returns the keys that the mapping at a location may have.
    """
    errors = invalid.errors()
    # A misspelt key comes first, before the right one that is missing.
    error = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    location = _place(values, error["loc"])
    name = ".".join(map(str, location))
    if error["type"] == "missing":
        return f"{'.'.join(map(str, error['loc']))}: is missing; add this key"
    if error["type"] == "extra_forbidden":
        return f"{name}: no such key; {_nearest(str(location[-1]), keys_at(location[:-1]))}"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    given = error["input"]
    if given is None:
        return f"{name}: null is not a value here; give one, or remove the key"
    members = [other for other in errors if _place(values, other["loc"]) == location]
    if type(given) in (int, float):  # the member that takes numbers says which it takes
        members = [one for one in members if one["type"] != "literal_error"] or members
    texts = [one["msg"].removeprefix("Input should be ") for one in members]
    message = " or ".join([members[0]["msg"], *texts[1:]])
    message = message[0].lower() + message[1:]
    if error["type"] == "literal_error" and isinstance(given, str):
        expected = re.findall(r"'([^']*)'", error["msg"])
        message += f"; {_nearest(given, expected)}"
    if error["type"] == "list_type" and isinstance(given, (str, int, float)):
        message = f"a list is needed, such as '[{given}]'"
    if isinstance(given, float) and not math.isfinite(given):
        message = "a finite number is needed"
    shown = repr(given)
    return f"{name}: {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}: {message}"


def _place(values: Any, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the keys in ``values`` that lead to an error.

    pydantic reports the members of a union as further parts of the location; they are no fields.
    """
    found: list[int | str] = []
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        found.append(part)
    return tuple(found)


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML that reads back to the same configuration."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return one text for each field in which two nested values differ: 'key: old → new'."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in [*old, *(k for k in new if k not in old)]
            for line in differences(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    return [] if old == new else [f"{prefix.removesuffix('.')}: {old!r} → {new!r}"]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one mapping from dotted names to plain values."""
    if isinstance(values, list):
        values = {str(i): value for i, value in enumerate(values)}
    if not isinstance(values, dict):
        return {prefix.removesuffix("."): values}
    parts = (flat(value, f"{prefix}{key}.") for key, value in values.items())
    return {key: value for part in parts for key, value in part.items()}
