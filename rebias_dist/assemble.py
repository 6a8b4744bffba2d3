"""The parts of a run, made from its configuration: data, networks, players, records."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data_shards.format.manifest import Normalize
from rebias_dist import methods
from rebias_dist.config import plan
from rebias_dist.config.bias import BiasRule
from rebias_dist.config.data import MADE_FROM, DataConfig, is_address, resolved
from rebias_dist.config.plan import Plan
from rebias_dist.config.schema import Config
from rebias_dist.data import ShardDataset, TrainLoader, prepare_biased_mnist
from rebias_dist.data.decode import choose_decoder, describe_decoder
from rebias_dist.data.normalisation import Normalise
from rebias_dist.data.sampling import draws_of
from rebias_dist.data.splits import Data, open_data
from rebias_dist.data.transforms import train_transform
from rebias_dist.data.workers import transit_memory
from rebias_dist.errors import DataError
from rebias_dist.methods.base import Method
from rebias_dist.methods.registry import METHODS
from rebias_dist.models import feature_dim, last_layer
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.session import Session
from rebias_dist.ranks.waits import told
from rebias_dist.runs.keeper import Keeper
from rebias_dist.runs.networks import (
    build_networks,
    check_features,
    network_config,
    read_weights,
)
from rebias_dist.runs.preparation import check_labels, prepare_method, training_set
from rebias_dist.runs.results import SELECTS, choosing_split
from rebias_dist.runs.run_folder import RunFolder
from rebias_dist.runs.saver import Saver
from rebias_dist.runs.snapshot import Snapshot
from rebias_dist.step.batchnorm import check_micro_batch_of_one
from rebias_dist.step.compilation import check_compilation
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision
from rebias_dist.step.randomness import keyed
from rebias_dist.telemetry.flops import Work
from rebias_dist.telemetry.processor import describe_cpu
from rebias_dist.telemetry.recorder import Recorder

_MANY = 20  # classes that the plan names


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    precision: Precision
    method: Method
    data: Data
    layout: Plan
    networks: dict[str, nn.Module]
    """``f``, ``g0``, ``g1`` … those that the method has."""
    players: dict[str, Player]
    game: Minimax
    loader: TrainLoader
    normalise: Normalise
    shape: tuple[int, int, int]
    """Channels, height and width of the networks' input."""
    folder: RunFolder
    snapshot: Snapshot

    @property
    def evaluated(self) -> dict[str, nn.Module]:
        """Return what is evaluated: the networks, and ``f_ema`` if f has an average."""
        average = self.players["f"].average if "f" in self.players else None
        return {**self.networks, **({} if average is None else {"f_ema": average.module})}

    def work(self) -> Work:
        """Count the model FLOPs of the steps."""
        return Work(self.method, self.networks, self.shape, self.layout.N * self.game.views)


def build(config: Config, consensus: Consensus, device: torch.device) -> Parts:
    """Build the parts of a run; a collective.

    Rank 0 makes the shards if need be and checks them; then all ranks open the same ones.

    Args:
        config: with a name, and the data section as recorded.
        consensus: the ranks.
        device: of this rank.

    Raises:
        RebiasError: alike on all ranks; the configuration, the data and the ranks do not fit
            together.
    """
    precision = Precision(config.precision, device)
    method = methods.build(config.method)
    root, is_new = "", False
    folder = RunFolder(Path(config.runs_dir) / str(config.name))
    told_of = told("preparation of the data", aloud=consensus.rank == 0)
    with consensus.on_rank_zero() as leader, told_of:
        if leader:
            is_new = not folder.config_file.exists()
            root = str(data_root(config))
            open_data(config, root).check()
    root, is_new = consensus.broadcast([root, is_new])
    with consensus.together():
        data = open_data(config, root)
        shape = sample_shape(config, data)
        layout = plan.derive(config, consensus.world_size, len(data.train))
    classes = len(data.classes)
    with consensus.together():
        networks = build_networks(config, classes, precision)
        check_features(config, method, networks, shape)
        check_networks(config, networks, shape, precision)
        if is_new and consensus.rank == 0:
            # Weights that do not fit are refused before the run has a folder.
            read_weights(config, networks, classes)
        check_labels(config, data.train.labels, data.train.bias, data.classes)
        labels, bias = data.train.labels, data.train.bias
        known = training_set(labels, bias, classes, shape, device)
        prepare_method(config, method, known, networks)
    players = build_players(config, method, networks, shape, classes, precision)
    normalise = build_normalise(data, precision)
    return Parts(
        precision=precision,
        method=method,
        data=data,
        layout=layout,
        networks=networks,
        players=players,
        game=build_game(config, method, players, normalise, layout, consensus),
        loader=build_loader(config, data.train, consensus, device),
        normalise=normalise,
        shape=shape,
        folder=folder,
        snapshot=Snapshot(players, data, shape, config, layout.steps_per_epoch, method, normalise),
    )


def open_records(
    config: Config, parts: Parts, ranks: Session, held: ExitStack
) -> tuple[Recorder, Keeper]:
    """Open what records a run and what saves it; a collective."""
    recorder = Recorder(
        config,
        parts.folder.path,
        parts.layout,
        len(parts.data.classes),
        consensus=ranks.consensus,
        precision=parts.precision,
        start_step=parts.snapshot.step,
        held=held,
    )
    saver = held.enter_context(closing(Saver(parts.folder.checkpoints, config.checkpoint.keep)))
    at = parts.snapshot
    return recorder, Keeper(
        config.checkpoint, at, saver, recorder.telemetry, ranks, parts.game.verdicts.settle
    )


def data_root(config: Config) -> Path | str:
    """Return the folder or the address of the shards.

    The embedded data set is made on the first call.
    """
    data = config.data
    if data.root is None:
        return prepare_biased_mnist(**made_from(data))
    return data.root if is_address(data.root) else Path(data.root)


def made_from(data: DataConfig) -> dict[str, Any]:
    """Return the values from which the shards of Biased-MNIST are made where there is no root."""
    fraction = 0.0 if data.selection == "none" else data.selection
    return {key: getattr(data, key) for key in MADE_FROM} | {"selection_fraction": fraction}


def as_recorded(data: DataConfig) -> DataConfig:
    """Return the data section as a run keeps it: paths absolute, the decoder by its name."""
    paths = {"root": data.root, "source": data.source, "aligned": data.aligned}
    return data.model_copy(
        update={
            "decoder": choose_decoder(data.decoder),
            "other_tests": {k: resolved(p) for k, p in data.other_tests.items()},
            **{k: resolved(p) for k, p in paths.items() if p},
        }
    )


def check_networks(
    config: Config,
    networks: dict[str, nn.Module],
    shape: tuple[int, int, int],
    precision: Precision,
) -> None:
    """Refuse networks that cannot train on the micro-batches, or cannot be compiled."""
    for name, network in networks.items():
        if config.b == 1:
            check_micro_batch_of_one(name, network, shape, precision)
        if config.compile:
            check_compilation(name, network, (config.b, *shape), precision)


def sample_shape(config: Config, data: Data) -> tuple[int, int, int]:
    """Return the shape of what the networks see: channels, height, width."""
    if config.data.augmentation == "crop_flip":
        return 3, config.data.crop, config.data.crop
    for image in data.train.sound_images():
        channels, height, width = image.shape
        return channels, height, width
    raise DataError(f"{data.train.place}: has no readable sample; make the shards again")


def build_players(
    config: Config,
    method: Method,
    networks: dict[str, nn.Module],
    shape: tuple[int, int, int],
    classes: int,
    precision: Precision,
) -> dict[str, Player]:
    """Wrap the networks with optimizers, scalers and gradient reduction; a collective."""
    lasts = {
        name: network.get_submodule(last_layer(network, classes))
        for name, network in networks.items()
        if network_config(config, name).sets_head
    }
    widths = {name: feature_dim(network, shape) for name, network in networks.items()}
    heads = None
    if method.facts.has_f:
        g_widths = [width for name, width in widths.items() if name != "f"]
        with keyed(torch.device("cpu"), config.seed, "init", "heads"):
            heads = method.heads(widths["f"], g_widths, classes)
        if heads is not None:
            heads.to(precision.device, precision.parameters)
    own_method = config.method.name not in METHODS
    return {
        name: Player(
            name,
            network,
            heads=heads if name == "f" else None,
            optimizer=config.optimizer,
            precision=precision,
            unused=own_method or (name != "f" and not config.method.update_g_cls),
            skips=config.faults.non_finite_limit if config.faults.non_finite == "skip" else 0,
            compile=config.compile,
            own=network_config(config, name),
            last=lasts.get(name),
        )
        for name, network in networks.items()
    }


def build_normalise(data: Data, precision: Precision) -> Normalise:
    """Return the normalisation of the data's images."""
    return Normalise(data.train.manifest.normalize, precision.device, precision.parameters)


def build_game(
    config: Config,
    method: Method,
    players: dict[str, Player],
    normalise: Normalise,
    layout: Plan,
    consensus: Consensus | None = None,
) -> Minimax:
    """Return the game that the players play."""
    return Minimax(
        method,
        players.get("f"),
        [player for name, player in players.items() if name != "f"],
        normalise=normalise,
        global_batch=config.global_batch,
        micro_batches=config.global_batch // config.b,
        seed=config.seed,
        views=config.data.views,
        first_step=layout.pretrain_epochs * layout.steps_per_epoch,
        consensus=consensus,
    )


def build_loader(
    config: Config, dataset: ShardDataset, consensus: Consensus, device: torch.device
) -> TrainLoader:
    """Return the loader of a rank's share of the training samples."""
    return TrainLoader(
        dataset,
        global_batch=config.global_batch,
        micro_batch=config.b,
        seed=config.seed,
        rank=consensus.rank,
        world_size=consensus.world_size,
        transform=train_transform(config.data, config.seed),
        workers=config.data.workers,
        window=config.data.window,
        verify=config.data.verify,
        on_damaged=config.data.on_damaged,
        views=config.data.views,
        pinned=device.type == "cuda",
        draws=draws_of(config.data, dataset.labels, dataset.bias, dataset.manifest.classes),
    )


@dataclass(frozen=True)
class Outline:
    """What the plan says of the data."""

    text: str
    """Name, shards and folder."""
    classes: tuple[str, ...]
    train: int
    """Number of training samples."""
    selection: int | None
    tests: dict[str, int]
    shape: tuple[int, int, int]
    """Of what the networks see: channels, height, width."""
    labels: NDArray[np.integer]
    """Of the training samples."""
    bias: NDArray[np.integer]
    normalize: Normalize
    rule: BiasRule


def outline(data: Data, shape: tuple[int, int, int]) -> Outline:
    """Return what the plan says of open shards."""
    manifest = data.train.manifest
    return Outline(
        text=f"{manifest.dataset}, {len(manifest.shards)} shards in {data.train.place}",
        classes=data.classes,
        train=len(data.train),
        selection=None if data.selection is None else len(data.selection),
        tests={split: len(dataset) for split, dataset in data.tests.items()},
        shape=shape,
        labels=data.train.labels,
        bias=data.train.bias,
        normalize=manifest.normalize,
        rule=data.rule,
    )


def facts(
    config: Config,
    data: Outline,
    networks: dict[str, nn.Module],
    method: Method,
    device: torch.device,
) -> dict[str, str]:
    """Return the plan's lines on the data, the networks and the device."""
    tests = ", ".join(f"{split} {samples:,}" for split, samples in data.tests.items())
    chosen = "none" if data.selection is None else f"{data.selection:,}"
    named = {}
    for name, given in {"f": config.f, **{f"g{i}": g for i, g in enumerate(config.g)}}.items():
        named[name] = "–"
        if name in networks:
            trained = sum(p.numel() for p in networks[name].parameters() if p.requires_grad)
            named[name] = f"{given.name}, {trained:,} parameters"
    # The workers of an evaluation are started while those of the training are still there.
    together = config.data.views * config.b + config.evaluate.batch
    workers = config.data.workers
    needed = transit_memory(workers, together, math.prod(data.shape))
    classes = ", ".join(data.classes[:_MANY]) + (", …" if data.classes[_MANY:] else "")
    mean, std = (
        " ".join(f"{value:g}" for value in values)
        for values in (data.normalize.mean, data.normalize.std)
    )
    elsewhere = any(network_config(config, name).begins_elsewhere for name in networks)
    radius = "not used"
    if method.needs_radii:
        radius = f"f {config.radius.f}, g {config.radius.g}"
    return {
        "data": data.text,
        "classes": f"{len(data.classes)}: {classes}",
        "images": f"{data.shape[1]} × {data.shape[2]}, normalised by the mean {mean} and the "
        f"deviation {std}" + (", or those of the initial weights" if elsewhere else ""),
        "bias": data.rule.text() if data.rule.values else "no labels",
        "held out": f"selection {chosen}; tests {tests}",
        "best": f"chosen on {choosing_split(config)} by {SELECTS[config.evaluate.select]}",
        "decoder": describe_decoder(choose_decoder(config.data.decoder)),
        "data workers": f"{workers} a rank"
        + (f", which pass on images in {needed / 2**20:.1f} MiB of memory" if workers else ""),
        **named,
        "kernel radius": radius,
        "device": describe_cpu(config.precision) if device.type == "cpu" else str(device),
    }
