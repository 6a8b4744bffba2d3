"""The checkpoints to evaluate, ours or the public code's, and the folders of shards for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from data_shards.classes import shipped_class_map
from data_shards.format.manifest import MANIFEST_NAME, Normalize
from data_shards.litter import children
from data_shards.sources.listing import IMAGENET_NORMALIZE
from rebias_dist.assemble import data_root
from rebias_dist.config.bias import BiasRule
from rebias_dist.config.data import is_address
from rebias_dist.config.schema import Config
from rebias_dist.data import ShardDataset
from rebias_dist.data.bias import values_of
from rebias_dist.data.decode import choose_decoder
from rebias_dist.data.splits import open_data
from rebias_dist.errors import ConfigError
from rebias_dist.evaluation.loaded_run import load_run
from rebias_dist.methods.radii import Radii
from rebias_dist.models import load_public_checkpoint, load_state
from rebias_dist.runs import checkpoint
from rebias_dist.runs.networks import build_networks
from rebias_dist.runs.run_folder import RunFolder
from rebias_dist.step.precision import Precision

Choice = Literal["last", "best", "oracle", "step", "public"]
_STEP_FOLDER = re.compile(r"step-(\d{9})")
# Data sets whose classes and normalisation are known without their shards.
_KNOWN = ("imagenet1k", "imagenet9")


@dataclass(frozen=True)
class CheckpointRef:
    """The place of a checkpoint: ``source`` is a run's folder or a file."""

    source: str
    choice: Choice
    step: int | None = None
    """Step of a run's checkpoint; None for a file."""
    finished: bool = True
    """Whether the run has its results."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint's networks and everything needed to evaluate them."""

    ref: CheckpointRef
    step: int
    config: Config
    networks: dict[str, nn.Module]
    """``f``, ``g0`` …"""
    classes: tuple[str, ...]
    constants: Normalize
    radii: Radii | None
    digests: dict[str, str]
    """Digest of each split that a run was trained and tested on; empty for the public code's."""
    rule: BiasRule
    """Which value of the bias goes with each class."""


def find_checkpoints(path: str) -> list[CheckpointRef]:
    """Return the checkpoints that a path stands for.

    A run's folder stands for its last and its best checkpoint; the best is called an oracle if the
    test data chose it. A folder ``checkpoints/step-…`` stands for that step, a file for itself.

    Raises:
        ConfigError: the path does not exist, or is not a run with a checkpoint.
        DataError: the newest checkpoint of a run is damaged.
    """
    place = Path(path)
    if place.is_file():
        return [CheckpointRef(path, "public")]
    if not place.is_dir():
        raise ConfigError(f"{path}: no such run or checkpoint")
    step = _STEP_FOLDER.fullmatch(place.resolve().name)
    if step and not (place / "config.yaml").exists():
        run = place.resolve().parent.parent
        return [CheckpointRef(str(run), "step", int(step[1]), RunFolder(run).has_results)]
    folder = RunFolder(place)
    config, finished = folder.read_config(), folder.has_results
    last = checkpoint.choose(folder.checkpoints, "last")
    found = [CheckpointRef(path, "last", last, finished)]
    try:
        best = checkpoint.choose(folder.checkpoints, "best")
    except ConfigError:  # not evaluated yet
        return found
    choice: Choice = "oracle" if config.data.selection == "none" else "best"
    return [*found, CheckpointRef(path, choice, best, finished)]


def load_subject(ref: CheckpointRef, config: Config | None, device: torch.device) -> Subject:
    """Load a checkpoint.

    Args:
        ref: the place of the checkpoint.
        config: describes the networks of a public checkpoint; a run has its own.
        device: where the networks go.

    Raises:
        ConfigError: it does not match its configuration, or a public checkpoint is refused.
        DataError: it is damaged.
    """
    if ref.choice == "public":
        if config is None:
            raise ConfigError(
                f"{ref.source}: a checkpoint file needs --config, which describes its networks"
            )
        return _public(ref, config, device)
    assert ref.step is not None
    loaded = load_run(ref.source, ref.step, str(device))
    return Subject(
        ref,
        loaded.step,
        loaded.config,
        loaded.networks(),
        loaded.classes,
        loaded.constants or _constants_of(loaded.config),
        loaded.radii,
        loaded.digests,
        loaded.rule,
    )


def _constants_of(config: Config) -> Normalize:
    rule = BiasRule()  # only the normalisation is read
    return open_data(config, data_root(config), rule).train.manifest.normalize


def _public(ref: CheckpointRef, config: Config, device: torch.device) -> Subject:
    public = load_public_checkpoint(ref.source)
    if config.data.dataset in _KNOWN:
        classes, constants = shipped_class_map(config.data.dataset).classes, IMAGENET_NORMALIZE
        rule = BiasRule()
    else:
        data = open_data(config, data_root(config))
        manifest, rule = data.train.manifest, data.rule
        classes, constants = manifest.classes, manifest.normalize
    networks = build_networks(config, len(classes), Precision(config.precision, device))
    states = {"f": public.f} | {f"g{i}": g for i, g in enumerate(public.g_nets)}
    if config.has_g and len(public.g_nets) > len(config.g):
        raise ConfigError(
            f"{ref.source}: has {len(public.g_nets)} g networks, but the configuration has "
            f"{len(config.g)}; give --g a list with an entry for each"
        )
    for name, network in networks.items():
        if name not in states:
            raise ConfigError(f"{ref.source}: has no {name}, only {', '.join(states)}")
        load_state(network, states[name], where=f"{ref.source}: {name}")
    epoch = public.metadata.get("epoch", 0)
    step = epoch if isinstance(epoch, int) else 0
    return Subject(ref, step, config, networks, classes, constants, None, {}, rule)


# ---------------------------------------------------------------------------- data


def find_splits(given: Sequence[str]) -> dict[str, Path]:
    """Return the folders of shards by the names that their figures get.

    Args:
        given: ``FOLDER`` or ``NAME=FOLDER``. A folder of splits stands for all of them except
            ``train``.

    Raises:
        ConfigError: a folder has no shards, or two folders have the same name.
    """
    found: dict[str, Path] = {}
    for name, folder in _folders(given):
        if name in found:
            name = f"{folder.resolve().parent.name}/{name}"
        if name in found:
            raise ConfigError(f"--on {folder}: {name} is given twice; use --on NAME={folder}")
        found[name] = folder
    return found


def _folders(given: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for text in given:
        name, _, rest = text.partition("=")
        if is_address(text) or is_address(rest):
            raise ConfigError(
                f"--on {text}: must be a folder of this machine; 'rebias-evaluate RUN --data.root "
                "ADDRESS' evaluates the test splits at an address"
            )
        folder = Path(text if Path(text).exists() or not rest else rest)
        own = name if rest and folder == Path(rest) else ""
        if (folder / MANIFEST_NAME).exists():
            yield own or folder.resolve().name, folder
            continue
        below = [path.parent for path in children(folder, f"*/{MANIFEST_NAME}")]
        below = [split for split in below if split.name != "train"]
        if not below:
            raise ConfigError(
                f"--on {folder}: there are no shards here ({MANIFEST_NAME} is missing)"
            )
        for split in below:
            yield f"{own}/{split.name}" if own else split.name, split


def open_splits(subject: Subject, on: dict[str, Path], root: str | None) -> dict[str, ShardDataset]:
    """Open the given folders, or if there are none, the test splits of a subject.

    Args:
        subject: the checkpoint.
        on: folders by name.
        root: folder of the subject's data, in place of that in its configuration.

    Raises:
        ConfigError: there are no shards, or the run was trained or tested on other data.
        DataError: they are damaged.
    """
    config = subject.config
    if on:
        decoder = choose_decoder(config.data.decoder)
        bias = values_of(subject.rule)
        return {name: ShardDataset(folder, decoder, bias) for name, folder in on.items()}
    data = open_data(config, root or data_root(config), subject.rule)
    data.check_digests(subject.digests)
    return data.tests


def columns_of(subject: Subject, dataset: ShardDataset) -> list[int] | None:
    """Return the subject's output for each class of a split; None: all outputs, in order.

    Raises:
        ConfigError: the split has a class that the networks do not know.
    """
    classes = dataset.manifest.classes
    if classes == subject.classes:
        return None
    place = {name: number for number, name in enumerate(subject.classes)}
    unknown = [name for name in classes if name not in place]
    if unknown:
        raise ConfigError(
            f"{dataset.place}: its class {unknown[0]!r} is none of the {len(place)} of "
            f"{subject.ref.source}; use a split whose classes the networks know"
        )
    return [place[name] for name in classes]
