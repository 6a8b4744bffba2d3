"""The page of a report: one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from rebias_dist import version
from rebias_dist.config.files import to_yaml
from rebias_dist.reporting import plots, tables
from rebias_dist.reporting.command import command_of
from rebias_dist.reporting.corruptions import corruption_table
from rebias_dist.reporting.disagreements import Disagreements, disagreements
from rebias_dist.reporting.metrics import read_curves
from rebias_dist.reporting.protocol import PROTOCOLS
from rebias_dist.reporting.runs import Group, Run, chance_of, plain, splits_of
from rebias_dist.reporting.series import judged_split, series_of
from rebias_dist.reporting.svg import Picture
from rebias_dist.reporting.tables import Table
from rebias_dist.reporting.training_data import seeds_of

_MOST_SEEDS = 8  # runs of a group whose curves are drawn


@dataclass(frozen=True)
class RunPart:
    """A run, and how it is trained again."""

    name: str
    status: str
    seeds: str
    command: str
    config: str


@dataclass
class GroupPart:
    """What the page says of the runs of one setting."""

    label: str
    anchor: str
    runs: list[RunPart]
    notes: list[str] = field(default_factory=list)
    training: Picture | None = None
    scatter: Picture | None = None
    matrices: list[Table] = field(default_factory=list)
    images: Disagreements | None = None


@dataclass
class DatasetPart:
    """What the page says of one data set."""

    name: str
    chance: str
    pictures: list[tuple[Picture, str]]
    """Each with its caption."""
    tables: list[Table]
    protocol: str
    """Whether the runs are the published experiment."""
    groups: list[GroupPart]


def dataset_part(dataset: str, groups: Sequence[Group], stem: str) -> DatasetPart:
    """Gather tables and pictures of the runs on one data set; at least one has results.

    Args:
        dataset: its name.
        groups: of runs.
        stem: with which the names of pictures begin.
    """
    splits = splits_of(groups)
    chance = chance_of(groups)
    shown = [group for group in groups if group.runs]
    judged = judged_split(shown, list(splits))
    assert judged is not None, "a run with results has a split"
    words = f"{plots.checkpoint_words(shown)}; error bars: {plots.error_words(shown)}"
    pictures = [
        (
            Picture(
                stem,
                f"Accuracy of f and g by method on each test split of {plain(dataset)}; the "
                "figures are in the table of results",
                partial(plots.splits_picture, groups),
            ),
            f"Accuracy by test split ({words}).",
        )
    ]
    listed: list[Table] = []
    if dataset == "biased_mnist" and "unbiased" in splits:
        series = series_of(groups)
        listed.append(tables.rho_table(series, "unbiased"))
        picture = Picture(
            f"{stem}-rho",
            "Unbiased accuracy over the training correlation ρ, by method, beside published "
            "points; the figures are in the table",
            partial(plots.rho_picture, series, "unbiased"),
        )
        caption = f"Unbiased accuracy over ρ ({words}). Hollow marks are published points."
        pictures.append((picture, caption))
    if dataset == "imagenet9":
        listed.append(tables.nine_table(groups))
    for table in (
        corruption_table(groups),
        tables.contrast_table(groups, judged),
        tables.measures_table(groups, judged),
    ):
        listed += [table] if table else []
    protocol = "No published protocol is known for this data set."
    if dataset in PROTOCOLS:
        departures = tables.departure_table(groups, PROTOCOLS[dataset].source)
        protocol = "Nothing differs from the published protocol."
        if departures.rows:
            protocol = "Not the published experiment: see the table of what differs from it."
            listed.append(departures)
    listed.insert(0, tables.results_table(groups))
    parts = [_group_part(group, judged, f"{stem}-{i}") for i, group in enumerate(groups)]
    level = "" if chance is None else f"chance is {100 * chance:.1f} %"
    return DatasetPart(plain(dataset, 60), level, pictures, listed, protocol, parts)


def _group_part(group: Group, split: str, stem: str) -> GroupPart:
    runs = [*group.runs, *group.without]
    part = GroupPart(plain(group.label, 200), stem, [_run_part(run, group) for run in runs])
    if len(runs) > _MOST_SEEDS:
        part.notes.append(f"Curves: the first {_MOST_SEEDS} of {len(runs)} runs.")
    part.training = _training(group, runs[:_MOST_SEEDS], stem)
    if part.training is None:
        part.notes.append("Training curves: no run has a metrics.jsonl that can be read.")
    if not group.runs:
        return part
    part.scatter = _scatter(group, split, stem)
    for network in ("f", "g0"):
        for make in (tables.confusion_table, tables.bias_table):
            table = make(group, split, network)
            part.matrices += [table] if table else []
    if not part.matrices:
        part.notes.append(f"Confusion: no run tells it for {plain(split, 30)}.")
    images = disagreements(group, split)
    if isinstance(images, str):
        part.notes.append(f"Images on which f and g disagree: not shown; {images}.")
    else:
        part.images = images
    return part


def _run_part(run: Run, group: Group) -> RunPart:
    config = run.config or group.config
    status = run.problem or "finished"
    if run.results:
        status = f"{run.results.steps:,} steps"
    command = command_of(config) or "rebias-train --config CONFIG.yaml   # with the text below"
    seeds = "seed {}, data.seed {}".format(*seeds_of(config))
    return RunPart(plain(run.name), status, seeds, command, to_yaml(config))


def _training(group: Group, runs: Sequence[Run], stem: str) -> Picture | None:
    during = "selection" if group.config.data.selection != "none" else group.config.evaluate.monitor

    def wanted(tag: str) -> bool:
        return tag.endswith(("/ce", "/sigma", "_accuracy")) or tag.startswith("f/hsic_g")

    panels = plots.training_panels([read_curves(run.folder, wanted) for run in runs], during)
    if not panels:
        return None
    return Picture(
        f"{stem}-training",
        f"{', '.join(panel.title for panel in panels)} of {plain(group.label)} over the steps",
        partial(plots.training_picture, panels),
    )


def _scatter(group: Group, split: str, stem: str) -> Picture | None:
    """Return f against g by class, as means over seeds; None where one of them is not told."""
    rows = [[s.by_class() for _, s, _ in group.scores(group.counting, split, n)] for n in "fg"]
    rows[1] = [s.by_class() for _, s, _ in group.scores(group.counting, split, "g0")]
    means = [_means(of_network) for of_network in rows]
    results = group.runs[0].results
    assert results is not None
    if any(len(mean) != len(results.classes) for mean in means):
        return None
    both = [
        (name, f, g)
        for name, f, g in zip(results.classes, *means, strict=True)
        if f is not None and g is not None
    ]
    if not both:
        return None
    names, of_f, of_g = zip(*both, strict=True)
    return Picture(
        f"{stem}-classes",
        f"Accuracy of f against g by class, {plain(group.label)} on {plain(split, 30)}: "
        + ", ".join(f"{plain(n, 24)} {100 * f:.0f}/{100 * g:.0f}" for n, f, g in both[:20]),
        partial(plots.scatter_picture, names, of_f, of_g),
    )


def _means(runs: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean of each class over the runs that have samples of it."""
    if not runs or len(set(map(len, runs))) > 1:
        return []
    columns = [[v for v in column if v is not None] for column in zip(*runs, strict=True)]
    return [sum(column) / len(column) if column else None for column in columns]


def render(datasets: Sequence[DatasetPart], notes: Sequence[str], files: Sequence[str]) -> str:
    """Return the page.

    Args:
        datasets: what there is to show.
        notes: a line for each run that has no figures.
        files: names of the files that lie beside the page.
    """
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    return environment.get_template("report.html").render(
        datasets=datasets,
        notes=notes,
        files=files,
        version=version(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    )
