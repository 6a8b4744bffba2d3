"""The command ``rebias-train``, also ``python -m rebias_dist.train``.

The command line is parsed before torch is imported: ``--help``, ``--print-config`` and usage
errors answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rebias_dist import version
from rebias_dist.commands.parser import OneLineParser, leave_at_once, run_cli, set_thread_defaults
from rebias_dist.config.files import (
    DEFAULT_CONFIG,
    config_comment,
    list_configs,
    parse_yaml,
    to_yaml,
    validate,
)
from rebias_dist.config.flags import add_config_flags, read_file_of, resolve_config
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError, RankError
from rebias_dist.methods.options import MethodConfig
from rebias_dist.ranks.placement import is_rank_zero


@dataclass(frozen=True)
class Request:
    """What the command line asked for, besides the configuration itself."""

    config: Config
    resume: str = "auto"
    overrides: tuple[str, ...] = ()
    """Keys in which a resumed run may differ from what it was."""
    dry_run: bool = False
    default: bool = False
    """The default configuration, because no ``--config`` was given."""
    notes: tuple[str, ...] = ()
    """What to tell first: what was read from the shards in ``data.root``, because no ``--config``
    was given, and which options of the method have no effect."""


_EPILOG = """examples:
  rebias-train                                   the default: ReBias on 3,600 real digits
  torchrun --nproc_per_node=2 -m rebias_dist.train --config biased_mnist/rebias --data.rho 0.997
  rebias-train --config imagenet9/rebias --data.root shards/imagenet9 --dry-run
"""


def parse_train(argv: Sequence[str], program: str = "rebias-train") -> Request:
    """Parse the command line of ``rebias-train``; prints and exits for ``--help`` and its like."""
    values, where, default = read_file_of(argv)
    notes: list[str] = []
    if default and (read := _read_from_shards(argv)) is not None:
        # An option of a method of the user's is a flag only if its name is among the values.
        name = str(values["method"]["name"])
        own = {"method": {"name": name}} if ":" in name else {}
        of_shards, notes, where = read
        values, default = {**of_shards, **own}, False
    parser = OneLineParser(
        prog=program,
        usage=f"{program} [--config NAME_OR_FILE] [--FIELD VALUE ...]",
        description="Train f and g against each other, the same run on any layout of ranks.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    parser.add_argument("--list-configs", action="store_true", help="list shipped configurations")
    parser.add_argument("--print-config", action="store_true", help="print the resolved file, stop")
    parser.add_argument("--dry-run", action="store_true", help="print the derived plan and stop")
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="continue the run of this name: if there is one (auto), never, or always (must)",
    )
    parser.add_argument(
        "--resume-override",
        action="append",
        default=[],
        metavar="KEY",
        help="let a resumed run differ in this key, for example optimizer.lr, or manifest.train "
        "for the data of a split; may be given several times",
    )
    add_config_flags(parser, values)
    arguments = parser.parse_args(argv)
    if arguments.list_configs:
        for name, text in list_configs():
            print(f"{name:28} {text}")
        raise SystemExit(0)
    config = resolve_config(arguments, values, where)
    if arguments.print_config:
        if is_rank_zero():
            print(to_yaml(config), end="")
        raise SystemExit(0)
    if arguments.resume == "must" and config.name is None:
        raise ConfigError("--resume must: give the --name of the run")
    overrides = tuple(arguments.resume_override)
    _check_overrides(config, overrides)
    notes += _without_effect(config.method, vars(arguments), values.get("method"))
    return Request(config, arguments.resume, overrides, arguments.dry_run, default, tuple(notes))


def _read_from_shards(argv: Sequence[str]) -> tuple[dict[str, Any], list[str], str] | None:
    """Return values, notes and the root where ``--data.root`` is given without ``--config``."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--data.root", nargs="?", dest="root")
    first.add_argument("--data.test_splits", "--data.test-splits", nargs="?", dest="test_splits")
    first.add_argument("--data.cache_gb", "--data.cache-gb", nargs="?", dest="cache_gb")
    given = first.parse_known_args(argv)[0]
    root = given.root
    if root in (None, "null"):
        return None
    from rebias_dist.commands.from_shards import read_from  # reads images

    values: dict[str, Any] = {"root": root}
    for key in ("test_splits", "cache_gb"):
        if getattr(given, key) not in (None, "null"):
            values[key] = parse_yaml(getattr(given, key), f"--data.{key} {getattr(given, key)}")
    # The name of the data set is not known yet; any but the default needs a root.
    data = validate({"data": {"dataset": "unknown", **values}}).data
    tests = data.test_splits if "test_splits" in values else ()
    found = read_from(str(data.root), tests, data.cache_gb)
    return None if found is None else (*found, root)


def _without_effect(method: MethodConfig, flags: Collection[str], in_file: Any) -> list[str]:
    """Return a warning for each option without effect that was given for this method.

    What a file gives for another method is none: a sweep lays many methods over one file.
    """
    given = {flag.removeprefix("method.") for flag in flags}
    if isinstance(in_file, dict) and in_file.get("name") == method.name:
        given |= in_file.keys()
    return [
        f"warning: method.{name}: {method.name} does not use it, so {value} changes nothing; "
        "remove it"
        for name, value in method.without_effect.items()
        if name in given
    ]


def _check_overrides(config: Config, overrides: Sequence[str]) -> None:
    """Refuse a key that no resumed run is checked for; the recorded run is not at hand here."""
    splits = ["train", "selection", *config.data.test_splits, *config.data.other_tests]
    # The run may have skipped damaged samples; then its data.verify counts.
    known = [*_leaves(config.identity()), "data.aligned", "data.verify"]
    known += [f"manifest.{split}" for split in splits]
    # A factory's options have any names, and so have those of a method that the run had before.
    free = ("f.options.", *(["method."] if "method.name" in overrides else []))
    for key in overrides:
        if key not in known and not key.startswith(free):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see the keys of --print-config"
            raise ConfigError(
                f"--resume-override {key}: a resumed run is not checked for this key; {hint}"
            )


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def cli(
    argv: Sequence[str] | None = None, leaving: Callable[[int], None] = lambda code: None
) -> None:
    """Run ``rebias-train``.

    Args:
        argv: its arguments; None for those of the process.
        leaving: called with the exit code before the process ends at once, without SystemExit.
    """

    def command() -> None:
        set_thread_defaults()  # parsing imports torch if the shards lie at an address
        request = parse_train(sys.argv[1:] if argv is None else argv)
        if request.notes and is_rank_zero():
            print("\n".join(request.notes), flush=True)
        if request.dry_run:
            from rebias_dist.commands.dry_run import print_plan

            print_plan(request.config)
            return
        if request.default and is_rank_zero():
            print(f"no --config given, so this is {DEFAULT_CONFIG}:")
            print(config_comment(DEFAULT_CONFIG), flush=True)
        from rebias_dist.train import main

        try:
            main(request.config, request.resume, request.overrides)
        except RankError as error:
            leaving(error.exit_code)
            leave_at_once("rebias-train", error)

    run_cli("rebias-train", command)
