"""A configuration from the command line: every field is a flag, documented in ``--help``.

No torch here: ``--help``, ``--print-config`` and usage errors answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rebias_dist.config.data import MADE_FROM
from rebias_dist.config.files import (
    DEFAULT_CONFIG,
    parse_yaml,
    read_config_file,
    section_of,
    validate,
)
from rebias_dist.config.schema import OF_CONVNET, Config, NetworkConfig
from rebias_dist.errors import ConfigError
from rebias_dist.methods.options import (
    OPTIONS,
    MethodConfig,
    of_another_method,
    options_class,
)
from rebias_dist.methods.registry import METHODS

# Short names; every field has its dotted flag as well.
_SHORT = {"method.name": "--method", "log.profile": "--profile"}


def add_config_flags(parser: argparse.ArgumentParser, values: dict[str, Any]) -> None:
    """Add ``--config`` and a flag for every field; ``values`` of a file are shown as defaults."""
    parser.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        help=f"a YAML file or a shipped configuration (--list-configs); default {DEFAULT_CONFIG}",
    )
    _add_section(parser, Config, values, "")
    _add_method_options(parser, values.get("method"))


def _add_method_options(parser: argparse.ArgumentParser, given: Any) -> None:
    """Add a flag for each option that some methods have, and the others refuse."""
    classes, name = dict(OPTIONS), str(given.get("name")) if isinstance(given, dict) else ""
    if ":" in name:
        with contextlib.suppress(ValueError):  # refused when the configuration is checked
            classes[name] = options_class(name)
    group = parser.add_argument_group("method: options of some methods, which the others refuse")
    fields: dict[str, list[tuple[str, FieldInfo]]] = {}
    for method, options in classes.items():
        for key, field in options.model_fields.items():
            if key not in MethodConfig.model_fields:
                fields.setdefault(key, []).append((method, field))
    for key, found in fields.items():
        texts: dict[str, list[str]] = {}
        for method, field in found:
            texts.setdefault(_help(field, field.default), []).append(method)
        text = "; ".join(f"{', '.join(methods)}: {text}" for text, methods in texts.items())
        _add_field(group, f"method.{key}", found[0][1], None, text)


def show_only(parser: argparse.ArgumentParser, used: Callable[[str], bool]) -> None:
    """Hide the flags of fields that are not ``used`` from ``--help``; they are still accepted."""
    for action in parser._actions:
        if action.dest.split(".")[0] in Config.model_fields and not used(action.dest):
            action.help = argparse.SUPPRESS


def _add_section(
    parser: argparse.ArgumentParser, section: type[BaseModel], values: Any, prefix: str
) -> None:
    title = f"{prefix.removesuffix('.')}: {section.__doc__}" if prefix else "run"
    group = parser.add_argument_group(title)
    nested: list[tuple[type[BaseModel], Any, str]] = []
    for name, field in section.model_fields.items():
        dotted = prefix + name
        given = values.get(name) if isinstance(values, dict) else None
        inner = section_of(field.annotation)
        if inner is None or _is_list(field):
            _add_field(group, dotted, field, given)
        if inner is None:
            continue
        default = given if given is not None else field.default
        if _is_list(field):
            # A list of sections has a flag for the whole, as YAML, and one for each entry's field.
            entries = default if isinstance(default, list) else [{}]
            nested += [(inner, entry, f"{dotted}.{i}.") for i, entry in enumerate(entries)]
        else:
            nested.append((inner, default, f"{dotted}."))
    for inner, default, inner_prefix in nested:
        shown = default.model_dump() if isinstance(default, BaseModel) else default
        _add_section(parser, inner, shown, inner_prefix)


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is list


def _help(field: FieldInfo, default: Any) -> str:
    text = re.sub(r"\s+", " ", field.description or "").strip()
    return f"{text} [{'unset' if default is None else default}]"


def _add_field(
    group: Any, dotted: str, field: FieldInfo, given: Any, text: str | None = None
) -> None:
    flags = [f"--{dotted}"]
    if "_" in dotted:
        flags.append(f"--{dotted.replace('_', '-')}")
    if dotted in _SHORT:
        flags.append(_SHORT[dotted])
    default = given if given is not None else field.get_default(call_default_factory=True)
    if isinstance(default, list):
        default = [
            e.model_dump(exclude_unset=True) if isinstance(e, BaseModel) else e for e in default
        ]
    text = text or _help(field, default)
    choices, plain = _choices(field), field.annotation in (str, str | None)
    action = group.add_argument(
        *flags,
        dest=dotted,
        default=argparse.SUPPRESS,
        metavar=_metavar(field),
        type=_text if plain else _yaml_value(dotted),
        help=text.replace("%", "%%"),
        **({"nargs": "?", "const": True} if field.annotation is bool else {}),
    )
    # Choices are offered to the shell only; argparse must not check them, because the
    # configuration does, with better messages.
    action.completer = lambda **_: choices


def _text(text: str) -> str | None:
    return None if text == "null" else text


def _yaml_value(dotted: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return parse_yaml(text, f"--{dotted} {text}")
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _choices(field: FieldInfo) -> list[str]:
    if isinstance(field.json_schema_extra, dict) and "choices" in field.json_schema_extra:
        return [str(choice) for choice in cast(list[Any], field.json_schema_extra["choices"])]
    return [
        str(choice)
        for part in (field.annotation, *typing.get_args(field.annotation))
        if typing.get_origin(part) is typing.Literal
        for choice in typing.get_args(part)
    ]


def _metavar(field: FieldInfo) -> str:
    choices = _choices(field)
    if choices:
        others = float in _plain_types(field.annotation)
        return "{" + ",".join(choices + ["NUMBER"] * others) + "}"
    plain = _plain_types(field.annotation)
    for kind, text in ((str, "TEXT"), (bool, "BOOL"), (int, "INT"), (float, "NUMBER")):
        if kind in plain:
            return text
    return "YAML"


def _plain_types(annotation: Any) -> set[Any]:
    arguments = typing.get_args(annotation)
    if not arguments:
        return {annotation}
    if typing.get_origin(annotation) in (list, dict):
        return set()
    return set().union(*(_plain_types(argument) for argument in arguments))


def resolve_config(arguments: argparse.Namespace, values: dict[str, Any], where: str) -> Config:
    """Lay the given flags over a file's values and validate the whole.

    A flag with the value null unsets its field: a field that cannot be null takes its default.
    """
    merged: dict[str, Any] = values
    overrides = {
        key: value
        for key, value in vars(arguments).items()
        if key.split(".")[0] in Config.model_fields
    }
    method, name = values.get("method"), overrides.get("method.name")
    if isinstance(method, dict) and isinstance(name, str) and name != method.get("name"):
        # The file's options are for the file's method.
        with contextlib.suppress(ValueError):  # an unknown name is refused below
            merged = {**values, "method": of_another_method(method, name)}
    data = values.get("data")
    if isinstance(data, dict):
        # Existing shards replace those that the file would have made.
        dropped = set(MADE_FROM) if overrides.get("data.root") is not None else set()
        if name in METHODS and not METHODS[name].views:
            dropped.add("views")
        merged = {**merged, "data": {k: v for k, v in data.items() if k not in dropped}}
    # Shorter keys first: '--g [...]' sets the list in which '--g.0.width 2' then changes a field.
    # A name before the other fields, for it drops those of the file's network.
    for dotted in sorted(overrides, key=lambda key: (key.count("."), not key.endswith(".name"))):
        merged = _with(merged, dotted.split("."), overrides[dotted], Config)
    try:
        return validate(merged)
    except ConfigError as error:
        # An error in the file is reported with the file's name; an error in a flag is not.
        raise ConfigError(
            f"{where}: {error}" if _fault(values) == str(error) else str(error)
        ) from None


def _fault(values: dict[str, Any]) -> str | None:
    try:
        validate(values)
    except ConfigError as error:
        return str(error)
    return None


def _with(values: Any, path: list[str], value: Any, section: type[Any] | None, at: str = "") -> Any:
    """Return a copy of nested ``values`` in which ``path`` is ``value``; ``at`` is for messages."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if head.isdigit():
        if not isinstance(values, list) or int(head) >= len(values):
            raise ConfigError(f"{at}: {values!r} has no entry {head}")
        entries = list(values)
        entries[int(head)] = _with(entries[int(head)], rest, value, section, f"{at}.{head}")
        return entries
    if not isinstance(values, dict):
        raise ConfigError(f"{at}: {values!r} is not a mapping of names to values")
    convnet = NetworkConfig.model_fields["name"].default
    is_name = section is NetworkConfig and head == "name"
    if is_name and value != convnet == values.get(head, convnet):
        values = {key: kept for key, kept in values.items() if key not in OF_CONVNET}
    field = section.model_fields.get(head) if section else None
    inner = values.get(head)
    if inner is None and rest and field is not None:
        default = field.default
        inner = (
            [entry.model_dump(exclude_unset=True) for entry in default]
            if isinstance(default, list)
            else default.model_dump(exclude_unset=True)
        )
    if value is None and not rest and field and type(None) not in _plain_types(field.annotation):
        return {key: kept for key, kept in values.items() if key != head}
    section_inside = section_of(field.annotation) if field else None
    deeper = f"{at}.{head}".lstrip(".")
    return {**values, head: _with(inner, rest, value, section_inside, deeper)}


def read_file_of(argv: Sequence[str]) -> tuple[dict[str, Any], str, bool]:
    """Return the values and name of the configuration that ``argv`` names, or of the default."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", nargs="?")
    first.add_argument("--method", "--method.name", nargs="?")
    found = first.parse_known_args(argv)[0]
    values = read_config_file(found.config or DEFAULT_CONFIG)
    method = values.get("method", {})
    if ":" in (found.method or "") and isinstance(method, dict):
        # The options of a method of the user's are flags, too.
        with contextlib.suppress(ValueError):  # refused when the configuration is checked
            if found.method != method.get("name"):
                method = of_another_method(method, found.method)
            values = {**values, "method": {**method, "name": found.method}}
    return values, found.config or DEFAULT_CONFIG, found.config is None
