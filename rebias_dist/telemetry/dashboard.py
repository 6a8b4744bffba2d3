"""The TensorBoard layout for f and g, the run's texts, and histograms of the weights."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from data_shards.images.clusters import CLUSTERS_NAME
from rebias_dist import version
from rebias_dist.config.files import to_yaml
from rebias_dist.config.schema import Config
from rebias_dist.data.splits import Data
from rebias_dist.phases import PHASES
from rebias_dist.telemetry.board import TensorBoard
from rebias_dist.telemetry.writers import Telemetry

HISTOGRAMS = 10
"""A run records histograms of its weights about so many times."""
_MANY = 12  # with more classes, the table of data shows only the smallest and the largest count


def layout(networks: Sequence[str], splits: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the layout of TensorBoard's tab "Custom scalars", for ``add_custom_scalars``.

    Args:
        networks: ``f``, ``g0`` … those that the method has.
        splits: names of the splits that are evaluated during training.
    """
    # TensorBoard shows a chart once for all runs of a folder if its tags are the same in each. So a
    # tag is a regular expression for the networks of any run.
    some, some_g = "(f|f_ema|g[0-9]+)", "g[0-9]+"
    couples = "f" in networks and any(name.startswith("g") for name in networks)
    game = {
        "losses": [f"{some}/loss"],
        "HSIC": [f"f/hsic_{some_g}", f"{some_g}/hsic"] if couples else [],
        "kernel radii": [f"{some}/sigma"] if couples else [],
        "accuracies in training": [f"{some}/accuracy"],
        "gradient norms": [f"{some}/grad_norm"],
    }
    charts = {"f against g": game}
    for split in splits:
        name = re.escape(split)
        charts[split] = {
            "accuracies": [f"{name}/{some}(_conflicting|_unbiased|_worst_group)?_accuracy"],
            "HSIC": [f"{name}/hsic_{some_g}"] if couples else [],
            "kernel entries (median)": [f"{name}/{some}_kernel"],
        }
    charts["speed"] = {
        "time by phase (%)": [f"time/{phase}" for phase in PHASES],
        "images/s": ["speed/images_per_s", "speed/images_per_s_rank"],
    }
    # TensorBoard matches a tag as a regular expression from its start; '$' makes it exact.
    return {
        category: {
            title: ["Multiline", [f"{tag}$" for tag in tags]]
            for title, tags in of_category.items()
            if tags
        }
        for category, of_category in charts.items()
    }


def introduce(
    telemetry: Telemetry,
    config: Config,
    data: Data,
    networks: Sequence[str],
    facts: Mapping[str, str],
    world_size: int,
) -> None:
    """Record the layout, and the configuration, environment and data as texts.

    Args:
        telemetry: the run's records.
        config: of the run.
        data: the splits.
        networks: ``f``, ``g0`` … those that the method has.
        facts: further rows of the table "environment".
        world_size: number of ranks.
    """
    telemetry.show(TensorBoard.layout, layout(networks, list(data.monitored)))
    telemetry.text("config", 0, f"```yaml\n{to_yaml(config)}```")
    environment = {
        "rebias_dist": version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "ranks": str(world_size),
        "threads a rank": str(torch.get_num_threads()),
        **facts,
    }
    rows = [f"| {key} | {value} |" for key, value in environment.items()]
    telemetry.text("environment", 0, "\n".join(["| what | value |", "|---|---|", *rows]))
    telemetry.text("data", 0, data_summary(data))


def data_summary(data: Data) -> str:
    """Return a Markdown table of the splits."""
    lines = [
        "| split | data set | images | shards | images of a class | bias | clusters | digest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    splits = {"train": data.train, "selection": data.selection, **data.tests}
    for name, split in splits.items():
        if split is None:
            continue
        manifest = split.manifest
        counts = manifest.class_counts
        shown = f"{min(counts):,} to {max(counts):,}"
        if len(counts) <= _MANY:
            pairs = zip(manifest.classes, counts, strict=True)
            shown = ", ".join(f"{label} {count:,}" for label, count in pairs)
        own = data.rule.ids(manifest.classes, split.values.names)[split.labels]
        known = (np.asarray(split.bias) >= 0) & (own >= 0)
        aligned = np.asarray(split.bias == own)[known]
        bias = f"{100 * aligned.mean():.2f} % aligned" if known.any() else "–"
        clusters = "yes" if (split.folder / CLUSTERS_NAME).exists() else "–"
        cells = [name, manifest.dataset, f"{manifest.samples:,}", str(len(manifest.shards)), shown]
        lines.append("| " + " | ".join([*cells, bias, clusters, manifest.digest[:12]]) + " |")
    if data.rule.aligned:
        lines += ["", f"bias: {data.rule.text()}"]
    return "\n".join(lines)


def show_weights(
    telemetry: Telemetry, step: int, networks: Mapping[str, nn.Module], epoch: int, epochs: int
) -> None:
    """Record histograms of the weights after the last epoch and after some others.

    Args:
        telemetry: the run's records.
        step: optimizer steps done.
        networks: by name.
        epoch: epochs done.
        epochs: of the whole run.
    """
    every = -(-epochs // HISTOGRAMS)
    if epoch % every and epoch != epochs:
        return
    for name, network in networks.items():
        for parameter, values in network.named_parameters():
            telemetry.show(TensorBoard.histogram, f"{name}/{parameter}", step, values.detach())
