"""Evaluations in TensorBoard and other trackers: scalars, pictures, final figures, projector."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rebias_dist.config.schema import Config
from rebias_dist.data import ShardDataset
from rebias_dist.data.splits import Data
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.groups import FEW, name_of
from rebias_dist.runs import results
from rebias_dist.telemetry.board import TensorBoard
from rebias_dist.telemetry.pictures import confusion_image, sample_grid
from rebias_dist.telemetry.trackers import settings_of
from rebias_dist.telemetry.writers import Telemetry

PROJECTED = 500
"""Number of samples in the projector."""
_COLUMNS = ("label", "bias", "prediction")
_SPRITE = 32  # side of an image in the projector, in pixels
# What may stand in a tag; the rest of a name becomes '_'.
_NO_TAG = re.compile(r"[^A-Za-z0-9._-]+")


def _named(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a network on a split that TensorBoard shows, by their names there."""
    worst = figures["worst_group"]
    found = {
        "accuracy": figures["accuracy"],
        "aligned_accuracy": figures["aligned"],
        "conflicting_accuracy": figures["conflicting"],
        "unbiased_accuracy": figures["unbiased"],
        "worst_group_accuracy": None if worst is None else worst["accuracy"],
    }
    return {name: value for name, value in found.items() if value is not None}


def _of_groups(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracies of the groups by tag; none if there are too many for charts."""
    groups = figures["groups"]
    if len(groups) > FEW:
        return {}
    return {f"group_{_NO_TAG.sub('_', name_of(group))}": group["accuracy"] for group in groups}


def show(telemetry: Telemetry, step: int, epoch: int, splits: Mapping[str, Any]) -> None:
    """Record the accuracies, HSIC and median kernel entries of an evaluation as scalars.

    Args:
        telemetry: the run's records.
        step: optimizer steps done.
        epoch: the current epoch.
        splits: by name, the figures of :func:`rebias_dist.evaluation.splits.evaluate_split`.
    """
    scalars: dict[str, float] = {}
    for split, found in splits.items():
        for network, figures in found["networks"].items():
            for name, value in {**_named(figures), **_of_groups(figures)}.items():
                scalars[f"{split}/{network}_{name}"] = value
            quantiles = found["kernel_quantiles"][network]
            if quantiles is not None:
                scalars[f"{split}/{network}_kernel"] = quantiles[1]
        for index, value in enumerate(found["hsic"]):
            if value is not None:
                scalars[f"{split}/hsic_g{index}"] = value
    telemetry.scalars(step, scalars, epoch=epoch)


def _show_matrices(
    telemetry: Telemetry,
    step: int,
    tag: str,
    figures: Mapping[str, Any],
    classes: Sequence[str],
    values: Sequence[str],
    attribute: str,
) -> None:
    confusion = confusion_image(np.array(figures["confusion"]), classes, classes, tag)
    telemetry.image(f"{tag}_confusion", step, confusion)
    count = np.array(figures["bias_count"])
    if count.any():
        with np.errstate(invalid="ignore"):  # a cell without samples is 0 / 0, shown empty
            cells = np.array(figures["bias_correct"]) / count
        image = confusion_image(cells, classes, values, f"{tag}: accuracy", column_axis=attribute)
        telemetry.image(f"{tag}_accuracy_by_{attribute}", step, image)


def show_samples(telemetry: Telemetry, dataset: ShardDataset) -> None:
    """Show the first training images."""
    if telemetry.shows_images:
        images = [image.numpy() for image in islice(dataset.sound_images(), 32)]
        same = [image for image in images if image.shape == images[0].shape]
        telemetry.image("data/train", 0, sample_grid(np.stack(same)))


def show_final(telemetry: Telemetry, config: Config, content: dict[str, Any], epoch: int) -> None:
    """Record the test figures, also as the final figures beside the configuration.

    Args:
        telemetry: the run's records.
        config: of the run.
        content: of results.json.
        epoch: the last epoch.
    """
    found = [
        (f"{results.choice_name(content, choice)}_{split}_{network}_{name}", name, value)
        for choice, of_choice in content["checkpoints"].items()
        for split, of_split in of_choice["splits"].items()
        for network, figures in of_split["networks"].items()
        for name, value in _named(figures).items()
    ]
    # TensorBoard's table opens with the first few metrics: those over all images.
    found.sort(key=lambda one: one[1] != "accuracy")
    metrics = {tag: value for tag, _, value in found}
    last = content["checkpoints"]["last"]
    if config.data.selection != "none":  # otherwise the last evaluation recorded them already
        show(telemetry, last["step"], epoch, last["splits"])
    if telemetry.shows_images:
        for split, of_split in last["splits"].items():
            for network, figures in of_split["networks"].items():
                tag = f"{split}/{network}"
                names = content["classes"], of_split["values"]
                attribute = content["bias"]["attribute"] or "colour"
                _show_matrices(telemetry, last["step"], tag, figures, *names, attribute)
    telemetry.final(settings_of(config), metrics)


def project(
    telemetry: Telemetry, config: Config, data: Data, evaluator: Evaluator, step: int
) -> None:
    """Put the features of a test split's first samples into the projector; for rank 0 alone.

    Each point has its image, label, bias and prediction. The split is that of
    ``evaluate.monitor`` if it is a test split, otherwise the first.

    Raises:
        DataError: a sample is damaged.
    """
    if telemetry.board is None:
        return
    split = config.evaluate.monitor
    split = split if split in data.tests else next(iter(data.tests))
    dataset = data.tests[split]
    precision = evaluator.precision
    count = min(len(dataset), PROJECTED)
    images = torch.stack([evaluator.transform(dataset.image(i), 0, i) for i in range(count)])
    labels = [data.classes[label] for label in dataset.labels[:count]]
    values = dataset.values.names
    biases = ["–" if bias < 0 else values[bias] for bias in dataset.bias[:count]]
    sprites = _sprites(images)
    for name, network in evaluator.networks.items():
        training = network.training
        network.eval()
        with torch.no_grad(), precision.autocast():
            parts = [
                network(evaluator.normalise(some.to(precision.device)))
                for some in torch.split(images, evaluator.batch)
            ]
        network.train(training)
        predicted = torch.cat([logits for logits, _ in parts]).argmax(1).tolist()
        rows = list(zip(labels, biases, (data.classes[label] for label in predicted), strict=True))
        features = torch.cat([features for _, features in parts]).float().cpu()
        points = (f"{split}_{name}", step, features, _COLUMNS, rows, sprites)
        telemetry.show(TensorBoard.embedding, *points)


def _sprites(images: Tensor) -> Tensor:
    """Return images as equal squares for the projector, float32 in 0..1."""
    side = min(_SPRITE, *images.shape[-2:])
    return nn.functional.adaptive_avg_pool2d(images.float() / 255, side)
