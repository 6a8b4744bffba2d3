"""Runs of one data set side by side: grouped over seeds, summarised, and against vanilla."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from rebias_dist.config.schema import Config
from rebias_dist.evaluation.corruptions import is_corruption
from rebias_dist.evaluation.groups import SMALL, footnote, group_of, is_small, name_of
from rebias_dist.methods.options import UnknownOptions
from rebias_dist.methods.registry import METHODS, Facts
from rebias_dist.reporting.frame import Figure, frame_of, over_seeds, summarise
from rebias_dist.reporting.runs import Run, plain
from rebias_dist.reporting.training_data import rho_of, seeds_of
from rebias_dist.runs.results import judged_network
from rebias_dist.runs.results_schema import Score

ABSENT = "–"
MARK = "†"
MARK_NOTE = f"{MARK} : trained with the bias labels of the training images."


def mark(label: str, facts: Facts | None) -> str:
    """Return a label, with a mark if the method sees the bias labels of the training images."""
    return f"{label} {MARK}" if facts and facts.bias_labels else label


@dataclass
class Group:
    """Runs of one setting, which differ in their seeds alone."""

    label: str
    series: str
    """The setting without its ρ."""
    config: Config
    runs: list[Run] = field(default_factory=list)
    """Runs with results, each with seeds of its own."""
    without: list[Run] = field(default_factory=list)
    """Runs without results."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """The options of the training shards; their seed is that of the first run."""

    @property
    def rho(self) -> float | None:
        """Return the training correlation, None where it is not known."""
        return rho_of(self.config, self.made_with)

    @property
    def marked(self) -> str:
        """Return the label for tables, with a mark where the method sees bias labels."""
        return mark(plain(self.label, 200), self.config.facts)

    @property
    def networks(self) -> list[str]:
        """Return the networks of the method: 'f', 'g0', …"""
        tested = next((run.results for run in self.runs if run.results), None)
        if tested and isinstance(self.config.method, UnknownOptions):
            splits = next(iter(tested.checkpoints.values())).splits
            return list(next(iter(splits.values())).networks)
        names = ["f"] if self.config.has_f else []
        return names + [f"g{i}" for i in range(len(self.config.g)) if self.config.has_g]

    @property
    def judged_network(self) -> str:
        """Return the network whose accuracy is the method's: f, or g where it has no f."""
        return judged_network(self.config)

    @property
    def checkpoints(self) -> tuple[str, str]:
        """Return 'last' and 'best', which is 'oracle' if test data chose it."""
        oracle = any(run.results.chosen_on == "oracle" for run in self.runs if run.results)
        return ("last", "oracle" if oracle else "best")

    @property
    def counting(self) -> str:
        """Return the checkpoint that counts: the best, unless test data chose it."""
        return "last" if "oracle" in self.checkpoints else "best"

    def seeds(self, checkpoint: str) -> str:
        """Return how many runs have figures of a checkpoint, as ``3``, or ``2 of 3``."""
        name = "last" if checkpoint == "last" else "best"
        there = sum(name in run.results.checkpoints for run in self.runs if run.results)
        total = len(self.runs) + len(self.without)
        return str(there) if there == total else f"{there} of {total}"

    def sizes(self, split: str) -> set[int]:
        """Return the numbers of samples that a split has in the runs."""
        return {
            found.splits[split].samples
            for run in self.runs
            if run.results
            for found in run.results.checkpoints.values()
            if split in found.splits
        }


@dataclass
class Comparison:
    """The runs on one data set."""

    dataset: str
    groups: list[Group]
    frame: pd.DataFrame
    """As :func:`frame_of` returns it, for the runs of the groups."""

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Return mean, error and interval, as :func:`summarise` does."""
        return summarise(self.frame)

    @cached_property
    def _figures(self) -> dict[object, Figure]:
        rows = self.summary.itertuples(index=False, name=None)
        return dict(zip(self.summary.index, map(Figure._make, rows), strict=True))

    def figure(
        self, group: Group, checkpoint: str, split: str, network: str, measure: str = "accuracy"
    ) -> Figure | None:
        """Return a measure over the seeds of a group, None where no run has it."""
        return self._figures.get((self.dataset, group.label, checkpoint, split, network, measure))

    def text(
        self, group: Group, checkpoint: str, split: str, network: str, measure: str = "accuracy"
    ) -> str:
        """Return a measure as text in percent, HSIC in thousandths; a dash where there is none.

        A worst group that leaves out smaller groups has a mark.
        """
        found = self.figure(group, checkpoint, split, network, measure)
        left_out = measure == "worst_group" and (group.label, split) in self._small
        marked = SMALL * left_out
        if found is None:
            return f"{ABSENT}{marked}"
        return found.text(1000, 2) if measure == "hsic" else found.text(mark=marked)

    def scores(self, group: Group, network: str) -> list[Score]:
        """Return the scores of a group's runs on the split that tells bias."""
        return list(self._judged(group, network)["score"])

    def _judged(self, group: Group, network: str) -> pd.DataFrame:
        """Return the rows of a network that count, on the split that tells bias."""
        mine = (self.frame["setting"] == group.label) & (self.frame["network"] == network)
        judged = self.frame["split"] == self.judged_split
        return self.frame[self.frame["counts"] & judged & mine]

    @cached_property
    def rules(self) -> list[str]:
        """Return the rules that say which bias goes with which class, each once, as text."""
        found = (run.results.rule for g in self.groups for run in g.runs if run.results)
        return list(dict.fromkeys(rule.text() for rule in found if rule.aligned))

    @cached_property
    def grouped(self) -> set[str]:
        """Return the splits whose groups of class and bias have names."""
        named = {
            str(run.folder)
            for group in self.groups
            for run in group.runs
            if run.results and run.results.rule.attribute
        }
        known = self.frame[self.frame["folder"].isin(named)].dropna(subset="worst_group")
        return set(known["split"])

    @cached_property
    def _small(self) -> dict[tuple[str, str], dict[str, list[int]]]:
        """Return by setting and split the groups too small to be the worst, with their sizes."""
        small: dict[tuple[str, str], dict[str, list[int]]] = {}
        known = self.frame.dropna(subset="split")[["setting", "split", "groups"]]
        for setting, split, groups in known.itertuples(index=False):
            for one in filter(is_small, groups):
                sizes = small.setdefault((setting, split), {}).setdefault(name_of(one), [])
                sizes.append(one["samples"])
        return small

    def left_out(self, splits: Iterable[str]) -> list[str]:
        """Return the footnotes to worst groups on some splits that leave out smaller groups."""
        notes = []
        for split in splits:
            sizes: dict[str, list[int]] = {}
            for (_, of), groups in self._small.items():
                for name, found in groups.items() if of == split else ():
                    sizes.setdefault(name, []).extend(found)
            small = {
                name: " to ".join(f"{size:,}" for size in sorted({min(found), max(found)}))
                for name, found in sizes.items()
            }
            notes.append(footnote(small, plain(split, 30)))
        return [note for note in notes if note]

    def groups_of(self, group: Group, network: str) -> list[dict[str, Any]]:
        """Return the groups of class and bias on the split that tells bias, summed over seeds.

        ``fewest`` are the samples of a group in the run where it has fewest.
        """
        correct: Counter[tuple[str, str]] = Counter()
        samples: dict[tuple[str, str], list[int]] = {}
        for one in itertools.chain.from_iterable(self._judged(group, network)["groups"]):
            named = (one["class"], one["value"])
            correct[named] += one["correct"]
            samples.setdefault(named, []).append(one["samples"])
        return [
            {**group_of(*named, correct[named], sum(sizes)), "fewest": min(sizes)}
            for named, sizes in samples.items()
        ]

    @cached_property
    def splits(self) -> dict[str, list[int]]:
        """Return the splits with their sizes in the runs, ascending, in the order of the runs.

        Those of ImageNet-C are left out, for they have a table of their own. Where there are no
        others, the first stands for all.
        """
        known = self.frame.dropna(subset="split")
        sizes = {
            str(split): sorted(map(int, found.unique()))
            for split, found in known.groupby("split", sort=False)["samples"]
        }
        others = {split: found for split, found in sizes.items() if not is_corruption(split)}
        return others or dict(list(sizes.items())[:1])

    @property
    def chance(self) -> float | None:
        """Return the accuracy of guessing, 1 / classes, or None where the runs disagree."""
        found = self.frame["chance"].dropna().unique()
        return float(found[0]) if len(found) == 1 else None

    @property
    def judged_split(self) -> str:
        """Return the split that tells bias: 'unbiased', or the one that the runs monitor."""
        wanted = ["unbiased", *(g.config.evaluate.monitor for g in self.groups if g.runs)]
        return next(split for split in [*wanted, *self.splits] if split in self.splits)


def compare(runs: Sequence[Run]) -> tuple[list[Comparison], list[str]]:
    """Group runs by data set and setting; return also a note on each run that is left out."""
    notes = [f"{plain(run.name)}: {run.problem}" for run in runs if run.problem]
    known = [run for run in runs if run.config]
    # Runs without results come last within their method: they join groups that have some.
    if not known:
        return [], notes
    known.sort(key=lambda run: (_place(_config(run).method.name), run.results is None))
    frame = frame_of(known)
    about = frame.drop_duplicates("folder")[["dataset", "setting", "series"]]
    groups: dict[tuple[str, str], Group] = {}
    for run, (dataset, setting, series) in zip(known, about.itertuples(index=False), strict=True):
        group = Group(setting, series, _config(run), made_with=run.made_with)
        group = groups.setdefault((dataset, setting), group)
        twin = next((other for other in group.runs if _seeds(other) == _seeds(run)), None)
        if run.results is None:
            group.without.append(run)
        elif twin is not None:
            # Counting it as another seed would make the spread look smaller than it is.
            note = f"left out, it repeats the seeds of {plain(twin.name)}"
            notes.append(f"{plain(run.name)}: {note}")
            frame = frame[frame["folder"] != str(run.folder)]
        else:
            group.runs.append(run)
    datasets = dict.fromkeys(dataset for dataset, _ in groups)
    return [
        Comparison(
            dataset,
            [group for (name, _), group in groups.items() if name == dataset],
            frame[frame["dataset"] == dataset],
        )
        for dataset in datasets
    ], notes


def _place(method: str) -> int:
    """Return the place of a method in tables; those of users come last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


def _config(run: Run) -> Config:
    assert run.config is not None
    return run.config


def _seeds(run: Run) -> tuple[int, int]:
    return seeds_of(_config(run), run.made_with)


def leads(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return how much more accurate f of each method is than f of vanilla, seed by seed.

    Only seeds that both have are compared, for they share data and initial weights of f.

    Args:
        frame: as :func:`frame_of` returns it, for the runs on one data set.
        split: on which they are compared.

    Returns:
        By setting the differences (``values``), their ``mean`` and standard deviation
        (``error``), and Student's 95 % interval ``low`` to ``high``, NaN for a single seed.
    """
    f = frame[frame["counts"] & (frame["split"] == split) & (frame["network"] == "f")]
    vanilla = f[f["method"] == "vanilla"]
    first = vanilla.groupby("shared")["setting"].transform("first")
    seeds = ["shared", "seed", "data.seed"]
    rivals = vanilla.loc[vanilla["setting"] == first, [*seeds, "accuracy"]]
    pairs = f[f["method"] != "vanilla"].merge(rivals, on=seeds, suffixes=("", "_of_vanilla"))
    return over_seeds(
        pairs.assign(value=pairs["accuracy"] - pairs["accuracy_of_vanilla"]), ["setting"]
    )
