"""TensorBoard, made for this game: layout, texts, histograms, projector."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from data_shards.images.clusters import CLUSTERS_NAME
from rebias_dist.assemble import eval_transform
from rebias_dist.commands.parser import version
from rebias_dist.config.files import to_yaml
from rebias_dist.config.schema import Config
from rebias_dist.phases import PHASES

if TYPE_CHECKING:
    from rebias_dist.assemble import Data, Normalise
    from rebias_dist.step.precision import Precision
    from rebias_dist.telemetry.writers import Telemetry

HISTOGRAMS = 10
"""How often a run has its weights as histograms, at most."""
PROJECTED = 500
"""Samples in the projector."""
_COLUMNS = ("label", "bias", "prediction")
_SPRITE = 32  # pixels of an image's side in the projector
_MANY = 12  # classes, above which a table of data has only the smallest and the largest


def layout(networks: Sequence[str], splits: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the layout of the tab "Custom scalars": what is to be seen side by side.

    Args:
        networks: ``f``, ``g0`` … as far as the method has them.
        splits: those that are evaluated during training.
    """
    gs = [name for name in networks if name != "f"]
    coupled = [f"f/hsic_{g}" for g in gs] + [f"{g}/hsic" for g in gs]
    game = {
        "losses": [f"{name}/loss" for name in networks],
        "HSIC": coupled if "f" in networks else [],
        "kernel radii": [f"{name}/sigma" for name in networks],
        "accuracies in training": [f"{name}/accuracy" for name in networks],
        "gradient norms": [f"{name}/grad_norm" for name in networks],
    }
    charts = {"f against g": game}
    for split in splits:
        kinds = ("", "_conflicting", "_unbiased")
        charts[split] = {
            "accuracies": [f"{split}/{name}{kind}_accuracy" for name in networks for kind in kinds],
            "HSIC": [f"{split}/hsic_{g}" for g in gs if "f" in networks],
            "kernel entries (median)": [f"{split}/{name}_kernel" for name in networks],
        }
    charts["speed"] = {
        "time by phase (%)": [f"time/{phase}" for phase in PHASES],
        "images/s": ["speed/images_per_s", "speed/images_per_s_rank"],
    }
    # TensorBoard takes a tag for the beginning of a regular expression.
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
    """Record the layout, and as texts the configuration, the environment and the data."""
    telemetry.layout(layout(networks, list(data.monitored)))
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
    """Return a table of the splits as Markdown."""
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
        known = np.asarray(split.bias) >= 0
        aligned = np.asarray(split.bias == split.labels)[known]
        bias = f"{100 * aligned.mean():.2f} % aligned" if known.any() else "–"
        clusters = "yes" if (split.folder / CLUSTERS_NAME).exists() else "–"
        cells = [name, manifest.dataset, f"{manifest.samples:,}", str(len(manifest.shards)), shown]
        lines.append("| " + " | ".join([*cells, bias, clusters, manifest.digest[:12]]) + " |")
    return "\n".join(lines)


def show_weights(
    telemetry: Telemetry, step: int, networks: Mapping[str, nn.Module], epoch: int, epochs: int
) -> None:
    """Record the weights as histograms after the last and a few other epochs.

    Args:
        telemetry: where to.
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
            telemetry.histogram(f"{name}/{parameter}", step, values.detach())


def project(
    telemetry: Telemetry,
    config: Config,
    data: Data,
    networks: Mapping[str, nn.Module],
    normalise: Normalise,
    precision: Precision,
    step: int,
) -> None:
    """Put the features of a test split's first samples into the projector, on rank 0 alone.

    Each point has its image, its label, its bias and what the network says. The split is that of
    ``evaluate.monitor``, or the first.

    Raises:
        DataError: a sample is damaged.
    """
    split = config.evaluate.monitor
    split = split if split in data.tests else next(iter(data.tests))
    dataset, transform = data.tests[split], eval_transform(config)
    count = min(len(dataset), PROJECTED)
    images = torch.stack([transform(dataset.image(i), 0, i) for i in range(count)])
    labels = [data.classes[label] for label in dataset.labels[:count]]
    biases = ["–" if bias < 0 else str(bias) for bias in dataset.bias[:count]]
    sprites = _sprites(images)
    for name, network in networks.items():
        training = network.training
        network.eval()
        with torch.no_grad(), precision.autocast():
            parts = [
                network(normalise(some.to(precision.device)))
                for some in torch.split(images, config.evaluate.batch)
            ]
        network.train(training)
        said = torch.cat([logits for logits, _ in parts]).argmax(1).tolist()
        rows = list(zip(labels, biases, (data.classes[label] for label in said), strict=True))
        features = torch.cat([features for _, features in parts]).float().cpu()
        telemetry.embedding(f"{split}_{name}", step, features, _COLUMNS, rows, sprites)


def _sprites(images: Tensor) -> Tensor:
    """Return images as squares that fit into the projector's one picture, in 0..1."""
    side = min(_SPRITE, *images.shape[-2:])
    return nn.functional.adaptive_avg_pool2d(images.float() / 255, side)
