"""Runs of one data set as a report compares them: over ρ, and against vanilla."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rebias_dist.evaluation.corruptions import is_corruption
from rebias_dist.reporting.runs import Figure, Group, plain, splits_of, student
from rebias_dist.reporting.training_data import rho_of, seeds_of


@dataclass
class Series:
    """Groups of one method and setting that differ in the training correlation."""

    label: str
    method: str
    groups: dict[float | None, Group] = field(default_factory=dict)
    """By ρ; None is a group whose ρ is not known."""

    @property
    def network(self) -> str:
        """Return the network whose accuracy is the method's."""
        return "f" if next(iter(self.groups.values())).config.has_f else "g0"

    def figure(self, rho: float | None, checkpoint: str, split: str) -> Figure | None:
        """Return the accuracy at one ρ."""
        group = self.groups.get(rho)
        return None if group is None else group.figure(checkpoint, split, self.network)


def series_of(groups: Sequence[Group]) -> list[Series]:
    """Join groups over ρ, as far as they agree in everything else."""
    found: list[tuple[dict[str, str], Series]] = []
    for group in groups:
        # The number of steps follows from the data, and these from ρ in part.
        settings = {k: v for k, v in group.settings.items() if k not in ("data.rho", "steps")}
        rho = rho_of(group.config)
        same = (s for known, s in found if known == settings and rho not in s.groups)
        series = next(same, None)
        if series is None:
            series = Series(group.config.method.name, group.config.method.name)
            found.append((settings, series))
        series.groups[rho] = group
    for settings, series in found:
        alike = [known for known, other in found if other.method == series.method]
        varied = [k for k, v in settings.items() if any(known.get(k) != v for known in alike)]
        series.label = ", ".join([series.method, *(f"{k} {plain(settings[k])}" for k in varied)])
        if not varied and len(alike) > 1:  # told apart by their steps alone
            series.label = ", ".join(g.label for g in series.groups.values())
    return [series for _, series in found]


@dataclass(frozen=True)
class Contrast:
    """How much better a method is than vanilla on one split."""

    group: Group
    split: str
    difference: float
    """Of the mean accuracies."""
    interval: tuple[float, float] | None
    """Student's, 95 %, of the differences seed by seed; None with fewer than two."""
    seeds: int


def contrasts(groups: Sequence[Group], split: str) -> list[Contrast]:
    """Return each method's lead over vanilla of the same setting and the same seeds.

    Only seeds that both have are compared, for they share data and initial weights of f.
    """
    plain_ones = [g for g in groups if g.config.method.name == "vanilla" and g.runs]
    found = []
    for group in groups:
        if group.config.method.name == "vanilla" or not group.config.has_f:
            continue
        setting = _without_method(group)
        rival = next((g for g in plain_ones if _without_method(g) == setting), None)
        if rival is None:
            continue
        ours, theirs = _by_seed(group, split), _by_seed(rival, split)
        gains = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
        if gains:
            interval = student(gains) if len(gains) > 1 else None
            found.append(Contrast(group, split, float(np.mean(gains)), interval, len(gains)))
    return found


def _without_method(group: Group) -> str:
    own = ("method.", "g.", "radius.", "steps")
    return json.dumps({k: v for k, v in group.settings.items() if not k.startswith(own)})


def _by_seed(group: Group, split: str) -> dict[tuple[int, int], float]:
    return {
        seeds_of(run.config): score.accuracy
        for run, score, _ in group.scores(group.counting, split, "f")
        if run.config is not None
    }


def shown_splits(groups: Sequence[Group]) -> dict[str, list[int]]:
    """Return the splits with their sizes, as ``splits_of`` does, but for those of ImageNet-C.

    These have a table of their own. Where there are no others, the first stands for all.
    """
    splits = splits_of(groups)
    others = {name: sizes for name, sizes in splits.items() if not is_corruption(name)}
    return others or dict(list(splits.items())[:1])


def judged_split(groups: Sequence[Group], splits: Sequence[str]) -> str | None:
    """Return the split that tells bias: 'unbiased', or the one that the runs monitor."""
    wanted = ["unbiased", *(group.config.evaluate.monitor for group in groups), *splits]
    return next((split for split in wanted if split in splits), None)
