"""``rebias-train --dry-run``: print the plan of a run. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from data_shards.sources.biased_mnist import Part
from rebias_dist import assemble, methods
from rebias_dist.assemble import Outline
from rebias_dist.config import plan
from rebias_dist.config.schema import Config
from rebias_dist.data import open_split, plan_biased_mnist, root_and_split
from rebias_dist.data.bias import Values, find_rule
from rebias_dist.data.splits import open_data
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.evaluation.splits import check_select, too_small
from rebias_dist.ranks.process_group import resolve_placement
from rebias_dist.runs.networks import (
    build_networks,
    check_features,
    network_config,
    read_weights,
)
from rebias_dist.runs.preparation import check_labels, prepare_method, training_set
from rebias_dist.step.precision import Precision


def print_plan(config: Config) -> None:
    """Print the plan on rank 0; nothing is trained or written and no process group is joined.

    Args:
        config: a resolved configuration.

    Raises:
        RebiasError: the configuration, the data and the number of ranks do not match.
    """
    placement = resolve_placement()
    plan.check_world(config, placement.world_size)
    if placement.rank != 0:
        return
    data = _outline(config)
    layout = plan.derive(config, placement.world_size, data.train)
    check_labels(config, data.labels, data.bias, data.classes)
    device = torch.device("cpu")
    networks = build_networks(config, len(data.classes), Precision(config.precision, device))
    method = methods.build(config.method)
    known = training_set(data.labels, data.bias, len(data.classes), data.shape, device)
    prepare_method(config, method, known, networks)
    check_features(config, method, networks, data.shape)
    facts = assemble.facts(config, data, networks, method, device)
    print("\n".join(plan.describe(config, layout, facts)))
    if data.rule.doubt:
        print(f"warning: {data.rule.doubt}")
    for name in networks:
        # Another run may still have to write the weights; published ones may be downloaded.
        if network_config(config, name).pretrained is not True:
            try:
                read_weights(config, [name], len(data.classes))
            except RebiasError as error:
                print(f"warning: {error}")


def _outline(config: Config) -> Outline:
    """Return what is known of the data: from their shards, or from what these would be made of."""
    if config.data.root is None:
        folder, parts = plan_biased_mnist(**assemble.made_from(config.data))
        if not folder.is_dir():
            return _not_made(config, folder, parts)
    data = open_data(config, assemble.data_root(config))
    check_select(config, data)
    if doubt := too_small(config, data):
        print(f"warning: {doubt}")
    return assemble.outline(data, assemble.sample_shape(config, data))


def _not_made(config: Config, folder: Path, parts: Mapping[str, Part]) -> Outline:
    """Return what is known of shards that the run would make first."""
    for split in (config.data.train_split, *config.data.test_splits):
        if split not in parts:
            raise ConfigError(f"data: there is no split {split!r}; there are {', '.join(parts)}")
    if config.data.bias is not None:
        raise ConfigError(
            f"data.bias: {config.data.bias!r}: the shards of biased_mnist have no attributes; "
            "unset it"
        )
    train = parts[config.data.train_split]
    tests = {split: len(parts[split].ids) for split in config.data.test_splits}
    for name, other in config.data.other_tests.items():
        tests[name] = len(open_split(*root_and_split(other), classes=train.plan.classes))
    cropped = config.data.augmentation == "crop_flip"
    side = config.data.crop if cropped else config.data.image_size
    shards = sum(math.ceil(len(part.ids) / part.plan.samples_per_shard) for part in parts.values())
    return Outline(
        f"{train.plan.dataset}, not made yet: the run first writes {shards} shards to {folder}, "
        f"from {train.digits.name}",
        train.plan.classes,
        len(train.ids),
        len(parts["selection"].ids) if "selection" in parts else None,
        tests,
        (3, side, side),
        train.labels,
        train.colours,
        train.plan.normalize,
        find_rule(config.data.aligned, Values(), train.plan.classes, train.labels, train.colours),
    )
