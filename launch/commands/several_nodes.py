"""Arguments of the commands that start a run on several nodes, and the run that they give."""

from __future__ import annotations

import argparse

from launch.commands.common import FIELD_NAME, add_new_run, add_set, split_settings
from rebias_dist.commands.train import parse_train
from rebias_dist.config.plan import check_world
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, the options that change it, and the layout of the ranks."""
    add_new_run(parser)
    add_set(parser, "a field of the configuration, such as optimizer.lr=0.01; may be repeated")
    parser.add_argument(
        "--resume-override",
        action="append",
        default=[],
        metavar="KEY",
        help="let a resumed run differ in this key, such as optimizer.lr; may be repeated",
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes [1]")
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument("--gpus-per-node", type=int, metavar="N", help="one rank for each GPU [1]")
    ranks.add_argument("--cpu", action="store_true", help="train on CPUs, without GPUs")
    parser.add_argument(
        "--ranks-per-node", type=int, default=1, metavar="N", help="with --cpu: ranks [1]"
    )
    parser.add_argument(
        "--cpus-per-rank",
        type=int,
        metavar="N",
        help="cores of a rank, to compute and load",
    )


def ranks_per_node(arguments: argparse.Namespace) -> int:
    """Return the ranks of a node: one for each GPU, or as many as were asked for on CPUs."""
    return int(arguments.ranks_per_node if arguments.cpu else arguments.gpus_per_node or 1)


def resolve_run(arguments: argparse.Namespace, command: str) -> Config:
    """Return the configuration that a command line gives, for the device that it asks for.

    Args:
        arguments: of ``add_run``.
        command: the subcommand, for messages.

    Raises:
        ConfigError: a value is wrong, or the ranks are more than the micro-batches of a step.
    """
    for name in ("nodes", "gpus_per_node", "ranks_per_node", "cpus_per_rank"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {number} is too few; use 1 or more")
    if arguments.ranks_per_node > 1 and not arguments.cpu:
        raise ConfigError("--ranks-per-node: ranks follow from --gpus-per-node; use it with --cpu")
    words = [f"--config={arguments.config}"]
    words += [] if arguments.name is None else [f"--name={arguments.name}"]
    words += [] if arguments.runs_dir is None else [f"--runs-dir={arguments.runs_dir}"]
    settings = split_settings(arguments.set)
    if named := settings.keys() & {"name", "runs_dir", "config"}:
        raise ConfigError(f"--set: {named.pop()} has its own flag; use that")
    words += [f"--{key}={value}" for key, value in settings.items()]
    # The keys reach command lines, and the configuration may hold keys with any character.
    for key in arguments.resume_override:
        if not FIELD_NAME.fullmatch(key):
            raise ConfigError(f"--resume-override: {key!r} is not a field's dotted name")
    words += [f"--resume-override={key}" for key in arguments.resume_override]
    config = parse_train(words, program=f"rebias-launch {command}").config
    check_world(config, arguments.nodes * ranks_per_node(arguments))
    return config.model_copy(update={"device": "cpu"}) if arguments.cpu else config
