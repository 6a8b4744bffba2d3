"""Warnings of known problems of training f against g, while a run trains.

Each is given once when the problem appears, and again only if it had disappeared. It goes to the
log and to the trackers' texts under ``warnings/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scipy.special import bdtrc, betaincinv  # importing scipy.stats would take a second

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
AT_CHANCE_WITHIN = 0.1
"""A network is at chance only if the samples exclude an accuracy that is higher by this."""
_FEWEST = 10  # with fewer conflicting images their accuracy is too uncertain
_SIGMAS = 2  # standard deviations above the noise that count as a difference
_LEVEL = 0.05  # of the test against chance


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
        pairs = zip(figures["hsic"], figures["hsic_noise"], strict=True)
        # If HSIC stands out from its noise, both kernels see something, whatever their entries are:
        # those of one pair of images in twenty may suffice.
        seeing = {
            f"g{index}": None not in (value, noise) and value >= _SIGMAS * noise
            for index, (value, noise) in enumerate(pairs)
        }
        seeing["f"] = any(seeing.values())
        blind = set()
        for network, quantiles in figures["kernel_quantiles"].items():
            if quantiles is None or seeing.get(network, seeing["f"]):  # f_ema has f's radius
                continue
            low, _, high = quantiles
            key = network[0]
            if high < NEAR:
                told, cure = f"0 (95 % of them below {high:.2g})", f"raise radius.scale_{key}"
            elif low > 1 - NEAR:
                told, cure = f"1 (95 % of them above {low:.4g})", f"lower radius.scale_{key}"
            else:
                continue
            blind.add(network)
            yield (
                f"kernel_{network}",
                f"the kernel of {network} sees nothing: its entries are near {told}; "
                f"{cure} or set radius.{key} to median",
            )
        if "f" not in blind:
            yield from self._of_hsic(figures, blind)

    def _of_hsic(self, figures: Mapping[str, Any], blind: set[str]) -> Iterator[tuple[str, str]]:
        for index, (value, noise) in enumerate(
            zip(figures["hsic"], figures["hsic_noise"], strict=True)
        ):
            if value is None or noise is None or f"g{index}" in blind:
                continue
            if value < _SIGMAS * noise:
                yield (
                    f"hsic_g{index}",
                    f"HSIC of f and g{index} ({value:.2g}) cannot be told from zero (its standard "
                    f"deviation for independent features is {noise:.2g}), so f learns only noise "
                    f"from g{index}; a larger global_batch has less noise",
                )

    def _of_accuracies(self, split: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        networks, samples, chance = figures["networks"], figures["samples"], 1 / self._classes
        for network, found in networks.items():
            accuracy, aligned = found["accuracy"], found["aligned"]
            # If a split's bias is independent of the class, a network that has learned only the
            # bias is at chance on the whole split, but not on its aligned images.
            knows_bias = aligned is not None and _above_chance(
                aligned, found["aligned_samples"], chance
            )
            if _at_chance(accuracy, samples, chance) and not knows_bias:
                yield (
                    f"chance_{network}",
                    f"{network} is at chance on {split} (accuracy {accuracy:.3f} on {samples:,} "
                    f"samples, chance {chance:.3f}): it has learned nothing yet",
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


def _above_chance(accuracy: float, samples: int, chance: float) -> bool:
    """Return whether an accuracy is above chance: by a one-sided exact binomial test, 5 %."""
    right = round(accuracy * samples)
    return bool(right and bdtrc(right - 1, samples, chance) < _LEVEL)


def _at_chance(accuracy: float, samples: int, chance: float) -> bool:
    """Return whether an accuracy is not above chance, and the samples are enough to say so.

    They are if the upper end of the 95 % interval (Clopper & Pearson, Biometrika 1934, one-sided)
    is near chance.
    """
    right = round(accuracy * samples)
    upper = float(betaincinv(right + 1, samples - right, 1 - _LEVEL))
    return not _above_chance(accuracy, samples, chance) and upper < chance + AT_CHANCE_WITHIN
