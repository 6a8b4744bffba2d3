"""The command ``rebias-evaluate``: any checkpoints on any shards, each sample once.

This module reads the command line and prints; :mod:`rebias_dist.evaluation.checkpoints` computes
the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from data_shards.system.signals import interrupt, on_stop_signals
from rebias_dist.commands.parser import OneLineParser, run_cli, set_thread_defaults
from rebias_dist.config.data import MADE_FROM
from rebias_dist.config.flags import add_config_flags, read_file_of, resolve_config, show_only
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.ranks.placement import is_rank_zero

_EPILOG = """examples:
  rebias-evaluate runs/demo                       a run's last and best checkpoint on its test data
  rebias-evaluate runs/a runs/b --csv             several, every figure with its interval
  torchrun --nproc_per_node=2 -m rebias_dist.commands.evaluate runs/demo
  rebias-evaluate runs/demo/checkpoints/step-000000840
  rebias-evaluate runs/nine --on shards/imagenet9/val --on shards/imagenet9-c
                                                  other shards; a folder of splits means all of them
  rebias-evaluate runs/nine --watermark SourceHanSerifSC-ExtraLight.otf
                                                  ImageNet-W: the test data with a watermark too
  rebias-evaluate best.pth --config biased_mnist/rebias --data.rho 0.997
                                                  a checkpoint of the public ReBias code
"""
# The fields that an evaluation reads, besides those of the networks.
_DATA = (*MADE_FROM, "dataset", "root", "selection", "train_split", "test_splits", "other_tests")
_BIAS = ("bias", "aligned")
_IMAGES = ("augmentation", "resize", "crop", "workers", "decoder")
_USED = {
    *("precision", "device", "method.name", "evaluate.batch", "evaluate.hsic_samples"),
    *(f"data.{key}" for key in (*_DATA, *_BIAS, *_IMAGES)),
}
_MINUTES = 10.0  # how long ranks wait for each other
_OWN = ("checkpoints", "on", "watermark", "json", "csv", "config", "data.root")


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Config | None]:
    values, where, default = read_file_of(argv)
    parser = OneLineParser(
        prog="rebias-evaluate",
        usage="rebias-evaluate RUN_OR_FILE [...] [--on FOLDER ...] [--watermark FONT] "
        "[--json | --csv] [--config NAME_OR_FILE] [--FIELD VALUE ...]",
        description="Evaluate runs, and checkpoints in the public ReBias code's format. A run has "
        "its own\nconfiguration, of which only --data.root can be changed. --config and the fields "
        "below\ndescribe the networks and the data of a public checkpoint.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "checkpoints",
        metavar="RUN_OR_FILE",
        nargs="+",
        help="a run's folder, a step's folder in its checkpoints/, or a public checkpoint",
    )
    parser.add_argument(
        "--on",
        metavar="[NAME=]FOLDER",
        action="append",
        default=[],
        help="folder of a split's shards, or of several splits (all but train are used); may be "
        "given several times; unset: the test splits of the run. A split may have fewer classes "
        "than the networks",
    )
    parser.add_argument(
        "--watermark",
        metavar="FONT",
        help="evaluate each split a second time with the watermark of ImageNet-W on its images, "
        "drawn in this font (file)",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--csv", action="store_true", help="print all figures as CSV, one a line")
    add_config_flags(parser, values)
    show_only(parser, lambda field: field in _USED or field.split(".")[0] in ("f", "g"))
    arguments = parser.parse_args(argv)
    if arguments.json and arguments.csv:
        raise ConfigError("--json and --csv: give one of them")
    given = [key for key in vars(arguments) if key not in _OWN]
    files = [path for path in arguments.checkpoints if Path(path).is_file()]
    if files and default:
        raise ConfigError(
            f"{files[0]}: a checkpoint file needs --config, which describes its networks"
        )
    if not files and (given or not default):
        run = arguments.checkpoints[0]
        if not Path(run).is_dir():
            raise ConfigError(f"{run}: no such run or checkpoint")
        raise ConfigError(
            f"{run}: a run has its own configuration, of which only --data.root can be changed; "
            f"leave out {'--config' if not default else '--' + given[0]}"
        )
    if not files:
        return arguments, None
    if arguments.on and "data.root" not in vars(arguments) and not _has_root(values):
        # The configuration of a data set needs its folder, which --on gives here.
        setattr(arguments, "data.root", str(Path(arguments.on[0].rpartition("=")[2]).parent))
    return arguments, resolve_config(arguments, values, where)


def _has_root(values: dict[str, Any]) -> bool:
    data = values.get("data", {})
    return data.get("root") is not None or data.get("dataset", "biased_mnist") == "biased_mnist"


def cli(argv: Sequence[str] | None = None) -> None:
    """Run ``rebias-evaluate``."""

    def command() -> int:
        arguments, config = _parse(sys.argv[1:] if argv is None else argv)

        set_thread_defaults()
        # These import torch; --help and usage errors need not wait for that.
        from rebias_dist.data.workers import bounded_waits
        from rebias_dist.evaluation import text
        from rebias_dist.evaluation.checkpoints import evaluate_all
        from rebias_dist.ranks.process_group import choose_device, process_group, resolve_placement

        placement = resolve_placement()
        wanted = "auto" if config is None else config.device
        device = choose_device(wanted, placement.local_rank)
        with ExitStack() as held:
            if placement.world_size == 1:
                # Among several ranks these signals keep their effect: they end a rank at once, and
                # a handler would have to wait until the other ranks answer.
                held.enter_context(on_stop_signals(interrupt))
            held.enter_context(bounded_waits(_MINUTES, lambda: False))
            consensus = held.enter_context(process_group(placement, device, _MINUTES))
            evaluated, problems = evaluate_all(
                arguments.checkpoints,
                arguments.on,
                arguments.watermark,
                getattr(arguments, "data.root", None),
                config,
                device,
                consensus,
            )
        if is_rank_zero() and evaluated:
            if arguments.json:
                print(json.dumps(evaluated))
            elif arguments.csv:
                print(text.as_csv(evaluated), end="")
            else:
                print(text.text(evaluated))
        for problem in problems[:-1]:
            if is_rank_zero():
                print(f"rebias-evaluate: error: {problem}", file=sys.stderr)
        if problems:
            raise problems[-1]
        return 0

    run_cli("rebias-evaluate", command)


if __name__ == "__main__":
    cli()
