"""The command ``rebias-evaluate``: a run's table again, from its checkpoints.

It also evaluates checkpoints in the public ReBias code's format. The figures themselves are
made in :mod:`rebias_dist.runtime.evaluation`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebias_dist import results
from rebias_dist.cli import (
    OneLineParser,
    add_config_flags,
    read_file_of,
    resolve_config,
    run_cli,
)
from rebias_dist.config import Config
from rebias_dist.errors import ConfigError
from rebias_dist.runtime.placement import is_rank_zero

# torch is imported where it is first needed: --help and usage errors do not wait for it.
if TYPE_CHECKING:
    import torch

    from rebias_dist.runtime.consensus import Consensus

_EPILOG = """examples:
  rebias-evaluate runs/demo                       the table of a run, from its checkpoints
  torchrun --nproc_per_node=2 -m rebias_dist.evaluate runs/demo
  rebias-evaluate best.pth --config biased_mnist/rebias --data.rho 0.997
                                                  a checkpoint of the public ReBias code
"""


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Config | None]:
    values, where, default = read_file_of(argv)
    parser = OneLineParser(
        prog="rebias-evaluate",
        usage="rebias-evaluate RUN_OR_FILE [--json] [--config NAME_OR_FILE] [--FIELD VALUE ...]",
        description="Evaluate a run, or a checkpoint in the public ReBias code's format.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_OR_FILE", help="a run's folder, or a public checkpoint")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    add_config_flags(parser, values)
    arguments = parser.parse_args(argv)
    given = [key for key in vars(arguments) if key not in ("run", "json", "config", "data.root")]
    if Path(arguments.run).is_dir():
        if not default or given:
            raise ConfigError(
                f"{arguments.run}: a run brings its own configuration, but for --data.root; "
                f"leave out {'--config' if not default else '--' + given[0]}"
            )
        return arguments, None
    if not Path(arguments.run).is_file():
        raise ConfigError(f"{arguments.run}: no such run or checkpoint")
    if default:
        raise ConfigError(
            f"{arguments.run}: a checkpoint file needs --config, which says what its networks are"
        )
    return arguments, resolve_config(arguments, values, where)


def _evaluate_run(
    run: str, root: str | None, device: torch.device, consensus: Consensus
) -> tuple[dict[str, Any], int]:
    from rebias_dist.assemble import Normalise, data_root, open_data
    from rebias_dist.runtime.evaluation import evaluate_splits
    from rebias_dist.runtime.loaded_run import load_run
    from rebias_dist.runtime.precision import Precision

    found: dict[str, Any] = {}
    for choice in ("last", "best"):
        with consensus.together():
            loaded = load_run(run, choice, str(device))
            config = loaded.config
            data = open_data(config, Path(root) if root else data_root(config))
            data.check_digests(loaded.digests)
        if len(set(consensus.gather(loaded.step))) > 1:
            raise ConfigError(
                f"{run}: the ranks see different {choice} checkpoints; is the run still going on?"
            )
        if "last" in found and found["last"]["step"] == loaded.step:
            found[choice] = found["last"]
            continue
        networks = {"f": loaded.f} if loaded.f is not None else {}
        networks |= {f"g{i}": g for i, g in enumerate(loaded.g_nets)}
        precision = Precision(config.precision, device)
        normalise = Normalise(data.train, precision)
        splits = evaluate_splits(
            networks, config, data.tests, normalise, precision, loaded.radii, consensus
        )
        found[choice] = {"step": loaded.step, "splits": splits}
    return found, len(data.classes)


def _evaluate_public(
    path: str, config: Config, device: torch.device, consensus: Consensus
) -> tuple[dict[str, Any], int]:
    from rebias_dist.assemble import Normalise, build_networks, data_root, open_data
    from rebias_dist.models import load_public_checkpoint, load_state
    from rebias_dist.runtime.evaluation import evaluate_splits
    from rebias_dist.runtime.precision import Precision

    with consensus.together():
        data = open_data(config, data_root(config))
        public = load_public_checkpoint(Path(path))
        precision = Precision(config.precision, device)
        networks = build_networks(config, len(data.classes), precision)
        states = {"f": public.f} | {f"g{i}": g for i, g in enumerate(public.g_nets)}
        if config.has_g and len(public.g_nets) > len(config.g):
            raise ConfigError(
                f"{path}: holds {len(public.g_nets)} g networks, the configuration has "
                f"{len(config.g)}; give --g a list with an entry for each"
            )
        for name, network in networks.items():
            if name not in states:
                raise ConfigError(f"{path}: holds no {name}; it has {', '.join(states)}")
            load_state(network, states[name], where=f"{path}: {name}")
    splits = evaluate_splits(
        networks, config, data.tests, Normalise(data.train, precision), precision, None, consensus
    )
    step = public.metadata.get("epoch", 0)
    return {"public": {"step": int(step), "splits": splits}}, len(data.classes)


def cli(argv: Sequence[str] | None = None) -> None:
    """Run ``rebias-evaluate``."""

    def command() -> None:
        arguments, config = _parse(sys.argv[1:] if argv is None else argv)

        from rebias_dist.runtime.process_group import (
            choose_device,
            process_group,
            resolve_placement,
        )

        placement = resolve_placement()
        wanted = "auto" if config is None else config.device
        device = choose_device(wanted, placement.local_rank, placement.bound)
        with process_group(placement, device) as consensus:
            if config is None:
                found, classes = _evaluate_run(
                    arguments.run, getattr(arguments, "data.root", None), device, consensus
                )
            else:
                found, classes = _evaluate_public(arguments.run, config, device, consensus)
        if is_rank_zero():
            print(json.dumps(found) if arguments.json else results.table(found, 1 / classes))

    run_cli("rebias-evaluate", command)


if __name__ == "__main__":
    cli()
