"""Loading a run's networks and results from its folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from data_shards.format.manifest import Normalize
from rebias_dist.config.bias import BiasRule
from rebias_dist.config.schema import Config
from rebias_dist.data.normalisation import Normalise
from rebias_dist.data.transforms import eval_transform
from rebias_dist.errors import ArgumentError, ConfigError
from rebias_dist.evaluation.figures import Truth
from rebias_dist.evaluation.predictions import Predictions
from rebias_dist.evaluation.splits import figures_of
from rebias_dist.methods.options import UnknownOptions
from rebias_dist.methods.radii import Radii, radii_of
from rebias_dist.models import load_state
from rebias_dist.runs import results
from rebias_dist.runs.checkpoint import load, load_choice
from rebias_dist.runs.networks import build_networks
from rebias_dist.runs.run_folder import RunFolder
from rebias_dist.step.precision import Precision, set_products

_LARGEST_BIAS = 10_000  # there is a table of label × bias


@dataclass(frozen=True)
class LoadedRun:
    """A run's networks at one checkpoint, with its configuration, data and results."""

    f: nn.Module | None
    """The target network in evaluation mode; None if the method has none. It takes images as
    :meth:`predict` prepares them, floats ``[n, 3, height, width]`` that are normalised by
    ``constants``, and returns logits ``[n, classes]`` and features ``[n, d]``. Raw pixels give
    wrong predictions without an error."""
    g_nets: list[nn.Module]
    """The biased networks in evaluation mode; they take the same images."""
    config: Config
    metrics: dict[str, Any] | None
    """The content of results.json; None for a run that is not finished."""
    radii: Radii | None
    """Kernel radii at the checkpoint; None if the method or the pretraining has none."""
    step: int
    """Optimizer steps taken."""
    digests: dict[str, str]
    """Digest of the manifest of each split that the run was trained and tested on."""
    classes: tuple[str, ...]
    """Names of the classes, by label."""
    constants: Normalize | None
    """Mean and deviation by which images are normalised; None for checkpoints of earlier versions,
    which do not have them."""
    shape: tuple[int, int, int] | None
    """Channels, height and width of the networks' input; None as above."""
    rule: BiasRule = field(default_factory=BiasRule)
    """Which value of the bias goes with each class; of earlier versions, that of its number."""
    f_ema: nn.Module | None = None
    """f with the moving average of its weights, in evaluation mode; None without ``f.ema``."""

    def networks(self) -> dict[str, nn.Module]:
        """Return all networks by name: ``f``, ``g0``, ``g1`` … and ``f_ema``, those there are."""
        gs = {f"g{i}": g for i, g in enumerate(self.g_nets)}
        found = {"f": self.f, **gs, "f_ema": self.f_ema}
        return {name: network for name, network in found.items() if network is not None}

    def predict(self, images: Iterable[Tensor | NDArray[np.uint8]], network: str = "f") -> Tensor:
        """Return the logits of images as they are in the shards, prepared as in evaluation.

        The images are resized and cropped if the run has ``data.augmentation: crop_flip``, and
        normalised. They pass the network in batches of ``evaluate.batch``. This sets torch's
        precision of float32 products, for the whole process, to that of the run.

        Args:
            images: RGB pixels, uint8, of torch or NumPy: ``[n, 3, height, width]``, or several
                ``[3, height, width]``, which may differ in size.
            network: ``f``, ``g0``, ``g1`` … or ``f_ema``.

        Returns:
            float64 ``[n, classes]`` on the CPU, in the order of ``classes``; ``argmax(1)`` gives
            the predicted labels.

        Raises:
            ArgumentError: there are no images, they have another shape or type, or the run has no
                such network.
            ConfigError: the checkpoint is of an earlier version, without ``constants``.
        """
        networks = self.networks()
        if network not in networks:
            raise ArgumentError(f"network is {network!r}, but the run has {', '.join(networks)}")
        found = self._outputs(images, {network: networks[network]})
        return torch.cat([outputs[network][0] for outputs in found])

    def evaluate(
        self,
        images: Iterable[Tensor | NDArray[np.uint8]],
        labels: Sequence[int] | NDArray[np.integer] | Tensor,
        bias: Sequence[int] | NDArray[np.integer] | Tensor | None = None,
    ) -> dict[str, Any]:
        """Evaluate all networks on images of yours, as a run evaluates a split of shards.

        Args:
            images: as in :meth:`predict`.
            labels: ``[n]``, each a number of ``classes``.
            bias: ``[n]``, the number of each image's value of the bias (in ``rule.values``), -1
                for none; None: no image has one.

        Returns:
            The figures that results.json has for a split, as
            :func:`rebias_dist.evaluation.splits.evaluate_split` describes them, with intervals.
            There are no texture clusters, so ``unbiased`` is None.

        Raises:
            ArgumentError: labels or biases do not fit the images; or as in :meth:`predict`.
            ConfigError: as in :meth:`predict`.
        """
        truth = _whole_numbers("labels", labels, 0, len(self.classes) - 1, self.classes)
        n = len(truth)
        biases = np.full(n, -1)
        if bias is not None:
            biases = _whole_numbers("bias", bias, -1, _LARGEST_BIAS, self.rule.values)
        predicted: dict[str, list[Tensor]] = {name: [] for name in self.networks()}
        confidence: dict[str, list[Tensor]] = {name: [] for name in predicted}
        features: dict[str, list[Tensor]] = {name: [] for name in predicted}
        seen = 0
        for outputs in self._outputs(images, self.networks()):
            for name, (logits, rows) in outputs.items():
                best = logits.argmax(1)
                predicted[name].append(best)
                confidence[name].append(logits.softmax(1).gather(1, best[:, None])[:, 0])
                kept = rows[: max(0, self.config.evaluate.hsic_samples - seen)].cpu()
                features[name].append(kept if kept.dtype == torch.float64 else kept.float())
            seen += len(best)
        if not seen == n == len(biases):
            raise ArgumentError(f"there are {seen} images, {n} labels and {len(biases)} biases")
        names = self.rule.names(int(biases.max()) + 1)
        rule = self.rule.ids(self.classes, names)
        no_clusters = np.zeros((0, n), dtype=np.int64)
        known = Truth(truth, biases, no_clusters, len(self.classes), rule, len(names))
        predictions = Predictions(
            {name: torch.cat(parts).numpy() for name, parts in predicted.items()},
            {name: torch.cat(parts).numpy() for name, parts in confidence.items()},
            {name: torch.cat(parts) for name, parts in features.items()},
        )
        return figures_of(predictions, known, self.classes, names, self.radii, with_intervals=True)

    def _outputs(
        self, images: Iterable[Tensor | NDArray[np.uint8]], networks: Mapping[str, nn.Module]
    ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Yield logits (float64, on the CPU) and features of each batch, by network."""
        if self.constants is None:
            raise ConfigError(
                "a checkpoint of an earlier version does not say how images are normalised; "
                "continue the run by a step, or normalise the images and call f"
            )
        device = next(next(iter(networks.values())).parameters()).device
        set_products(self.config.precision)
        precision = Precision(self.config.precision, device)
        normalise = Normalise(self.constants, device, precision.parameters)
        prepared, seen = map(self._prepared, images), 0
        while batch := list(itertools.islice(prepared, self.config.evaluate.batch)):
            seen += len(batch)
            outputs = {}
            with torch.no_grad(), precision.autocast():
                normalised = normalise(torch.stack(batch).to(device))
                for name, network in networks.items():
                    logits, features = network(normalised)
                    outputs[name] = (logits.double().cpu(), features)
            yield outputs
        if not seen:
            raise ArgumentError("there are no images")

    def _prepared(self, pixels: Tensor | NDArray[np.uint8]) -> Tensor:
        """Return an image as the networks see it in evaluation, but not normalised."""
        image = torch.as_tensor(pixels)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ArgumentError(
                "an image must be uint8 RGB pixels [3, height, width], not "
                f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
            )
        seen = eval_transform(self.config.data)(image, 0, 0)
        if self.shape is not None and seen.shape != self.shape:
            raise ArgumentError(
                f"the networks were trained on images {list(self.shape)}, not {list(seen.shape)}"
            )
        return seen


def _whole_numbers(
    name: str,
    given: Sequence[int] | NDArray[np.integer] | Tensor,
    low: int,
    high: int,
    words: Sequence[str],
) -> NDArray[np.int64]:
    """Return numbers as int64 ``[n]``; ArgumentError if they are no whole numbers in a range.

    ``words`` are what the numbers stand for, for the message.
    """
    numbers = np.asarray(given)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        kind = f"{numbers.dtype} {list(numbers.shape)}"
        some = ", ".join(f"{number} for {word}" for number, word in enumerate(words[:3]))
        cure = f"; write {some}{' …' if words[3:] else ''}" if numbers.dtype.kind in "UO" else ""
        raise ArgumentError(f"{name} must be whole numbers [n], not {kind}{cure}")
    if ((numbers < low) | (numbers > high)).any():
        raise ArgumentError(
            f"{name} must be from {low} to {high}, not {numbers.min()} to {numbers.max()}"
        )
    return numbers.astype(np.int64)


def load_run(run: str | Path, checkpoint: str | int = "best", device: str = "cpu") -> LoadedRun:
    """Load a checkpoint of a run; see :func:`rebias_dist.load`.

    Args:
        run: the run's folder.
        checkpoint: ``best``, ``last`` or a step.
        device: where the networks go.

    Raises:
        ConfigError: there is no such run or checkpoint, or it does not match its configuration.
        DataError: the checkpoint is damaged.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if isinstance(checkpoint, str):
        state = load_choice(folder.checkpoints, checkpoint)
    else:
        state = load(folder.checkpoints, checkpoint)
    precision = Precision(config.precision, torch.device(device))
    networks = build_networks(config, len(state["classes"]), precision)
    if isinstance(config.method, UnknownOptions):  # only the checkpoint knows its networks
        networks = {name: net for name, net in networks.items() if name in state["players"]}
    for name, network in networks.items():
        if name not in state["players"]:
            raise ConfigError(f"{run}: its checkpoint has no network {name}")
        load_state(network, state["players"][name]["network"], where=f"{run}: {name}")
        network.eval()
    average = state["players"].get("f", {}).get("average")
    averaged: AveragedModel | None = None
    if average is not None:
        averaged = AveragedModel(networks["f"])
        load_state(averaged, average, where=f"{run}: f.ema")
    seen = state.get("input")
    return LoadedRun(
        f=networks.pop("f", None),
        g_nets=list(networks.values()),
        config=config,
        metrics=results.read(folder.results_file) if folder.has_results else None,
        radii=radii_of(state),
        step=state["step"],
        digests=state["data"],
        classes=tuple(state["classes"]),
        constants=Normalize(mean=tuple(seen["mean"]), std=tuple(seen["std"])) if seen else None,
        shape=tuple(seen["shape"]) if seen else None,
        rule=BiasRule.model_validate(state["bias"])
        if "bias" in state
        else BiasRule.by_number(state["classes"]),
        f_ema=None if averaged is None else averaged.module,
    )
