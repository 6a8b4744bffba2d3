"""Warnings of known problems of training f against g, while a run trains.

Each is given once when the problem appears, and again only if it had disappeared. It goes to the
log and to TensorBoard's texts under ``warnings/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rebias_dist.config.schema import Config

Warn = Callable[[str, int, str], None]
"""Takes the kind of a problem, the step, and the text of the warning."""

NEAR = 0.01
"""A kernel is uninformative if its entries are nearer than this to 0 or to 1."""
COLLAPSED = 0.01
"""A radius has collapsed if it is below this part of its first value."""
CLIPPED_STEPS = 50
"""Recorded steps in a row with a clipped gradient, from which on a warning is given."""
LEAST_GAP = 0.1
"""g is biased if its accuracy on aligned images exceeds that on conflicting ones by this."""
_FEWEST = 10  # with fewer conflicting images their accuracy is too uncertain
_SIGMAS = 2  # standard deviations above chance, or above the noise, that count as a difference


class Watch:
    """Looks for problems in the figures that a run records.

    Args:
        config: of the run.
        classes: number of classes.
        warn: called with each new problem.
    """

    def __init__(self, config: Config, classes: int, warn: Warn) -> None:
        self._config = config
        self._classes = classes
        self._warn = warn
        self._shown: set[str] = set()
        self._clipped: dict[str, int] = {}
        self._first_radius: dict[str, float] = {}

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Check the scalars that were recorded at a step."""
        found: dict[str, str] = {}
        for network in self._networks():
            if self._config.optimizer.clip_norm is not None:
                found |= self._clipping(network, values)
            found |= self._radius(network, values)
        self._tell(step, found, ("clipping", "radius"))

    def evaluated(self, step: int, splits: Mapping[str, Any]) -> None:
        """Check an evaluation, by split, of networks that have been trained together."""
        name = self._config.evaluate.monitor
        if self._config.data.selection != "none":
            name = "selection"
        figures = splits[name]
        found = dict(self._of_accuracies(name, figures))
        if self._config.facts.hsic:
            found |= dict(self._of_kernels(figures))
        self._tell(step, found, ("chance", "bias", "kernel", "hsic"))

    def _tell(self, step: int, found: Mapping[str, str], looked_for: tuple[str, ...]) -> None:
        """Warn of new problems; forget the others of the kinds that were looked for."""
        for kind, text in found.items():
            if kind not in self._shown:
                self._warn(kind, step, text)
        gone = {kind for kind in self._shown if kind.partition("_")[0] in looked_for}
        self._shown = (self._shown - gone) | found.keys()

    def _networks(self) -> list[str]:
        names = ["f"] if self._config.has_f else []
        return names + [f"g{i}" for i in range(len(self._config.g)) if self._config.has_g]

    # ---------------------------------------------------------------- at a step

    def _clipping(self, network: str, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        limit, norm = self._config.optimizer.clip_norm, values.get(f"{network}/grad_norm")
        if limit is None or norm is None:
            return
        count = self._clipped.get(network, 0) + 1 if norm > limit else 0
        self._clipped[network] = count
        if count >= CLIPPED_STEPS:
            yield (
                f"clipping_{network}",
                f"the gradient of {network} was clipped in each of the last {CLIPPED_STEPS} "
                f"recorded steps (its norm is {norm:.3g}, optimizer.clip_norm is {limit:g}), so "
                "its size has no effect; raise clip_norm",
            )

    def _radius(self, network: str, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        sigma = values.get(f"{network}/sigma")
        if sigma is None:
            return
        first = self._first_radius.setdefault(network, sigma)
        if sigma < COLLAPSED * first:
            yield (
                f"radius_{network}",
                f"the kernel radius of {network} has shrunk from {first:.3g} to {sigma:.3g}: its "
                "features are collapsing to a point; lower optimizer.lr or method.lambda_f",
            )

    # ---------------------------------------------------------------- at an evaluation

    def _of_kernels(self, figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for network, quantiles in figures["kernel_quantiles"].items():
            if quantiles is None:
                continue
            low, _, high = quantiles
            key = network[0]
            if high < NEAR:
                yield (
                    f"kernel_{network}",
                    f"the kernel of {network} sees nothing: its entries are near 0 (95 % of them "
                    f"below {high:.2g}); raise radius.scale_{key} or set radius.{key} to median",
                )
            elif low > 1 - NEAR:
                yield (
                    f"kernel_{network}",
                    f"the kernel of {network} sees nothing: its entries are near 1 (95 % of them "
                    f"above {low:.4g}); lower radius.scale_{key} or set radius.{key} to median",
                )
        for index, (value, noise) in enumerate(
            zip(figures["hsic"], figures["hsic_noise"], strict=True)
        ):
            if value is not None and noise is not None and value < _SIGMAS * noise:
                yield (
                    f"hsic_g{index}",
                    f"HSIC of f and g{index} ({value:.2g}) cannot be told from zero (its standard "
                    f"deviation for independent features is {noise:.2g}), so f learns only noise "
                    f"from g{index}; a larger global_batch has less noise",
                )

    def _of_accuracies(self, split: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        networks, chance = figures["networks"], 1 / self._classes

        def at_chance(accuracy: float, samples: int) -> bool:
            return accuracy <= chance + _SIGMAS * math.sqrt(chance * (1 - chance) / samples)

        for network, found in networks.items():
            accuracy, aligned = found["accuracy"], found["aligned"]
            # If a split's bias is independent of the class, a network that has learned only the
            # bias is at chance on the whole split, but not on its aligned images.
            knows_bias = aligned is not None and not at_chance(aligned, found["aligned_samples"])
            if at_chance(accuracy, figures["samples"]) and not knows_bias:
                yield (
                    f"chance_{network}",
                    f"{network} is at chance on {split} (accuracy {accuracy:.3f}, chance "
                    f"{chance:.3f}): it has learned nothing yet",
                )
            elif network.startswith("g"):
                yield from self._of_g(split, network, found, networks.get("f"))

    def _of_g(
        self, split: str, network: str, found: Mapping[str, Any], f: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, str]]:
        aligned, conflicting = found["aligned"], found["conflicting"]
        if aligned is not None and conflicting is not None:
            if found["conflicting_samples"] >= _FEWEST and aligned - conflicting < LEAST_GAP:
                yield (
                    f"bias_{network}",
                    f"{network} is not biased on {split}: its accuracy is {aligned:.3f} on images "
                    f"whose bias goes with their class and {conflicting:.3f} on the others; "
                    "give it a smaller receptive field, or train it longer",
                )
        elif f is not None and found["accuracy"] >= f["accuracy"]:
            yield (
                f"bias_{network}",
                f"{network} is as good as f on {split} (accuracy {found['accuracy']:.3f} and "
                f"{f['accuracy']:.3f}): nothing shows that it is the biased one",
            )
