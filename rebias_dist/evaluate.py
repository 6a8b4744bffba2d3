"""Evaluation: every network on every split, each sample once, the same on any layout.

Also the command ``rebias-evaluate``, which prints a run's table again from its checkpoints,
and evaluates checkpoints in the public ReBias code's format.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebias_dist import results
from rebias_dist.cli import (
    OneLineParser,
    add_config_flags,
    is_rank_zero,
    read_file_of,
    resolve_config,
    run_cli,
)
from rebias_dist.config import Config
from rebias_dist.errors import ConfigError, DataError, NonFiniteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rebias_dist.assemble import Normalise
    from rebias_dist.data import ShardDataset, Transform
    from rebias_dist.minimax import Radii
    from rebias_dist.runtime.consensus import Consensus
    from rebias_dist.runtime.precision import Precision


# ---------------------------------------------------------------- one split


def evaluate_split(
    networks: Mapping[str, nn.Module],
    dataset: ShardDataset,
    *,
    batch: int,
    transform: Transform,
    workers: int,
    normalise: Normalise,
    precision: Precision,
    radii: Radii | None,
    hsic_samples: int,
    consensus: Consensus,
) -> dict[str, Any]:
    """Evaluate networks (``f``, ``g0`` …) on a split, in evaluation mode; a collective.

    The contents of a batch do not depend on the ranks, and accuracies are made of counts, so
    that every layout finds the same ones; HSIC is the same to rounding.

    Returns:
        ``samples``; ``hsic``, one value for each g (None without f or g), of the features of
        the first ``hsic_samples`` samples with the kernel radii ``radii``, or where these are
        None with the medians of these features; ``networks``: for each its ``accuracy``,
        ``standard_error`` (binomial), ``correct``, ``confusion`` (label × prediction),
        ``bias_correct`` and ``bias_count`` (label × bias; samples without bias left out).
    """
    import torch

    from rebias_dist.data import EvalLoader

    manifest = dataset.manifest
    classes = len(manifest.classes)
    biases = max(int(dataset.bias.max(initial=-1)) + 1, 0)
    counts = {
        name: {
            "confusion": torch.zeros(classes, classes, dtype=torch.int64),
            "bias_correct": torch.zeros(classes, biases, dtype=torch.int64),
        }
        for name in networks
    }
    bias_count = torch.zeros(classes, biases, dtype=torch.int64)
    rows: dict[str, list[Tensor]] = {name: [] for name in networks}
    loader = EvalLoader(
        dataset,
        batch=batch,
        rank=consensus.rank,
        world_size=consensus.world_size,
        transform=transform,
        workers=workers,
    )

    training = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        with consensus.together(), torch.no_grad():
            for found in loader:
                labels, bias = found.labels, found.bias
                known = bias >= 0
                _count(bias_count, labels[known], bias[known])
                images = normalise(found.images.to(precision.device))
                for name, network in networks.items():
                    with precision.autocast():
                        logits, features = network(images)
                    predicted = logits.argmax(1).cpu()
                    right = predicted == labels
                    _count(counts[name]["confusion"], labels, predicted)
                    _count(counts[name]["bias_correct"], labels[known & right], bias[known & right])
                    rows[name].append(features[found.samples.to(features.device) < hsic_samples])
    finally:
        for name, network in networks.items():
            network.train(training[name])

    _reduce(
        [bias_count, *(c for of_network in counts.values() for c in of_network.values())], consensus
    )
    return {
        "samples": manifest.samples,
        "hsic": _feature_hsic(rows, radii, precision.device, consensus),
        "networks": {
            name: _figures(c["confusion"], c["bias_correct"], bias_count)
            for name, c in counts.items()
        },
    }


def _count(table: Tensor, row: Tensor, column: Tensor) -> None:
    import torch

    table.index_put_((row, column), torch.ones_like(row), accumulate=True)


def _reduce(tables: list[Tensor], consensus: Consensus) -> None:
    import torch
    import torch.distributed as dist

    if consensus.world_size == 1:
        return
    flat = torch.cat([table.flatten() for table in tables])
    dist.all_reduce(flat, group=consensus.group)
    for table in tables:
        table.copy_(flat[: table.numel()].view_as(table))
        flat = flat[table.numel() :]


def _figures(confusion: Tensor, bias_correct: Tensor, bias_count: Tensor) -> dict[str, Any]:
    samples, correct = int(confusion.sum()), int(confusion.diagonal().sum())
    accuracy = correct / samples
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / samples),
        "correct": correct,
        "confusion": confusion.tolist(),
        "bias_correct": bias_correct.tolist(),
        "bias_count": bias_count.tolist(),
    }


def _feature_hsic(
    rows: dict[str, list[Tensor]],
    radii: Radii | None,
    device: torch.device,
    consensus: Consensus,
) -> list[float | None]:
    import torch

    from rebias_dist.objectives import gather_features, hsic, median_distance

    gs = [name for name in rows if name != "f"]
    if "f" not in rows or not gs:
        return [None for _ in gs]
    # A rank without batches has no features, but takes part with none of the others' kind.
    mine = {name: [r[0].shape[1], str(r[0].dtype)] for name, r in rows.items() if r}
    kind = next(known for known in consensus.gather(mine) if known)
    joined = {}
    for name, parts in rows.items():
        width, dtype = kind[name]
        like = {"dtype": getattr(torch, dtype.removeprefix("torch.")), "device": device}
        joined[name] = torch.cat(parts) if parts else torch.zeros(0, width, **like)
    if sum(consensus.gather(len(joined["f"]))) < 4:
        return [None for _ in gs]
    features = {name: gather_features(r) for name, r in joined.items()}
    values: list[float | None] = []
    for index, g in enumerate(gs):
        try:
            sigma_f = radii.f if radii else median_distance([joined["f"]], name="f")
            sigma_g = radii.g[index] if radii else median_distance([joined[g]], name=g)
            values.append(float(hsic(features["f"], features[g], sigma_f, sigma_g)))
        except (DataError, NonFiniteError):  # collapsed or overflowing features have none
            values.append(None)
    return values


# ---------------------------------------------------------------- runs from disk


@dataclass(frozen=True)
class LoadedRun:
    """A run's networks and what is known about them."""

    f: nn.Module | None
    """The target network in evaluation mode, or None where the method has none."""
    g_nets: list[nn.Module]
    """The biased networks in evaluation mode."""
    config: Config
    metrics: dict[str, Any] | None
    """The content of results.json, or None for a run that is not finished."""
    radii: Radii | None
    step: int
    digests: dict[str, str]
    """Of the data that the run was trained and tested on."""


def load_run(run: str | Path, checkpoint: str = "best", device: str = "cpu") -> LoadedRun:
    """Load the ``best`` or ``last`` checkpoint of a run; see :func:`rebias_dist.load`."""
    import torch

    from rebias_dist.assemble import build_networks
    from rebias_dist.models import load_state
    from rebias_dist.runtime.checkpoint import load_choice
    from rebias_dist.runtime.precision import Precision
    from rebias_dist.runtime.run_folder import RunFolder
    from rebias_dist.runtime.snapshot import radii_of

    folder = RunFolder(run)
    config = folder.read_config()
    state = load_choice(folder.checkpoints, checkpoint)
    precision = Precision(config.precision, torch.device(device))
    networks = build_networks(config, len(state["classes"]), precision)
    for name, network in networks.items():
        if name not in state["players"]:
            raise ConfigError(f"{run}: its checkpoint has no network {name}")
        load_state(network, state["players"][name]["network"], where=f"{run}: {name}")
        network.eval()
    return LoadedRun(
        f=networks.pop("f", None),
        g_nets=list(networks.values()),
        config=config,
        metrics=results.read(folder.results_file) if folder.has_results else None,
        radii=radii_of(state),
        step=state["step"],
        digests=state["data"],
    )


def evaluate_splits(
    networks: Mapping[str, nn.Module],
    config: Config,
    data: Mapping[str, ShardDataset],
    normalise: Normalise,
    precision: Precision,
    radii: Radii | None,
    consensus: Consensus,
) -> dict[str, Any]:
    """Evaluate on several splits as a configuration says; a collective."""
    from rebias_dist.assemble import eval_transform

    return {
        split: evaluate_split(
            networks,
            dataset,
            batch=config.evaluate.batch,
            transform=eval_transform(config),
            workers=config.data.workers,
            normalise=normalise,
            precision=precision,
            radii=radii,
            hsic_samples=config.evaluate.hsic_samples,
            consensus=consensus,
        )
        for split, dataset in data.items()
    }


# ---------------------------------------------------------------- command

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
    from rebias_dist.runtime.precision import Precision

    found: dict[str, Any] = {}
    for choice in ("last", "best"):
        with consensus.together():
            loaded = load_run(run, choice, str(device))
            config = loaded.config
            data = open_data(config, Path(root) if root else data_root(config))
            data.check_digests(loaded.digests)
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
        device = choose_device("auto" if config is None else config.device, placement.local_rank)
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
