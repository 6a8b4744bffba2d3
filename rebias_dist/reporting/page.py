"""The page of a report, one HTML file that loads nothing and runs nothing, and its Markdown."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rebias_dist import version
from rebias_dist.config.files import to_yaml
from rebias_dist.evaluation.text import CHOICES
from rebias_dist.reporting import plots, tables
from rebias_dist.reporting.archive import is_drawn
from rebias_dist.reporting.command import command_of
from rebias_dist.reporting.comparison import Comparison, Group
from rebias_dist.reporting.disagreements import Disagreements, Example, disagreements
from rebias_dist.reporting.metrics import Curve, read_curves
from rebias_dist.reporting.protocol import PROTOCOLS
from rebias_dist.reporting.runs import Run, plain
from rebias_dist.reporting.svg import Picture
from rebias_dist.reporting.tables import Table
from rebias_dist.reporting.training_data import seeds_of

Curves = Sequence[Mapping[str, Curve]]
"""For each run of a setting its curves by tag."""

_MOST_SEEDS = 8  # runs of a group whose curves are drawn
# All but words and a few marks; an underscore means something at the edge of a word alone.
_SPECIAL = re.compile(r"[^\w\u00a0 .,:;'/()%±+=–×…†-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


_INTRODUCTION = """A network may take a bias of the training images, such as a colour or a texture,
for their class. Here f is the network that should not; g is one that is made to see little but the
bias, and f is trained to be independent of it. The test split 'biased' has the bias of the training
images. In 'unbiased' the bias says nothing of the class, so the accuracy there shows how much a
network relies on it. A method without f or without g has rows for the network that it has."""


@dataclass
class Dataset:
    """The part of a page on the runs of one data set."""

    name: str
    chance: str
    protocol: str
    """Whether the runs are the published experiment."""
    pictures: list[Picture]
    tables: list[Table]
    examples: dict[str, list[Example]]
    """For each test split a few of its images, where the data of a run are at hand."""
    settings: list[dict[str, Any]]
    """For each setting its label, anchor, notes, pictures, matrices, images and runs."""


def dataset_part(runs: Comparison, stem: str, *, with_published: bool) -> Dataset:
    """Gather tables and pictures of the runs on one data set; at least one has results.

    Args:
        runs: the runs.
        stem: the beginning of the names of pictures.
        with_published: show published figures even if these runs are another experiment.
    """
    protocol, departures = "No published protocol is known for this data set.", None
    if runs.dataset in PROTOCOLS:
        departures = tables.departures_table(runs, PROTOCOLS[runs.dataset].source)
        protocol = "Nothing differs from the published protocol."
    if departures is not None:
        protocol = "Not the published experiment: see the table of what differs from it."
    with_published = with_published or departures is None
    listed = [
        tables.results_table(runs),
        tables.published_table(runs, with_published=with_published),
        tables.corruption_table(runs),
        tables.leads_table(runs),
        tables.measures_table(runs),
        tables.groups_table(runs),
        departures,
    ]
    curves = [[read_curves(run.folder, is_drawn) for run in _drawn(g)] for g in runs.groups]
    settings = [
        _setting(runs, group, of_group, f"{stem}-{i}")
        for i, (group, of_group) in enumerate(zip(runs.groups, curves, strict=True))
    ]
    looked = [setting["images"] for setting in settings if setting["images"]]
    return Dataset(
        plain(runs.dataset, 60),
        "" if runs.chance is None else f"chance is {100 * runs.chance:.1f} %",
        protocol,
        [*_pictures(runs, stem, with_published), *_progress(runs, curves, stem)],
        [table for table in listed if table is not None],
        looked[0].examples if looked else {},
        settings,
    )


def _pictures(runs: Comparison, stem: str, with_published: bool) -> Iterator[Picture]:
    words = plots.words(runs)
    yield Picture.draw(
        stem,
        f"Accuracy of f and g by method on each test split of {plain(runs.dataset)}; the "
        "figures are in the table of results",
        f"Accuracy by test split ({words}).",
        partial(plots.splits_picture, runs),
    )
    if runs.dataset == "biased_mnist" and "unbiased" in runs.splits:
        beside = ", beside published points" if with_published else ""
        marks = " Hollow marks are published points." if with_published else ""
        yield Picture.draw(
            f"{stem}-rho",
            "Unbiased accuracy over the training correlation ρ, by method"
            f"{beside}; the figures are in the table",
            f"Unbiased accuracy over ρ ({words}).{marks}",
            partial(plots.rho_picture, runs, with_published=with_published),
        )


def _drawn(group: Group) -> list[Run]:
    """Return the runs of a setting whose curves are drawn."""
    return [*group.runs, *group.without][:_MOST_SEEDS]


def _during(group: Group) -> str:
    """Return the split on which the runs of a setting are evaluated during training."""
    return "selection" if group.config.data.selection != "none" else group.config.evaluate.monitor


def _progress(runs: Comparison, curves: Sequence[Curves], stem: str) -> Iterator[Picture]:
    """Yield the accuracies of all settings during training, on the split that most of them have."""
    splits = Counter(_during(group) for group in runs.groups)
    split = splits.most_common(1)[0][0]
    found = []
    for group, of_group in zip(runs.groups, curves, strict=True):
        tag = f"{split}/{group.judged_network}_accuracy"
        mine = [of_run[tag] for of_run in of_group if tag in of_run]
        if mine and len(band := plots.band_of(mine)) > 1:
            progress = plots.Progress(group.series, group.config.method.name, group.rho, band)
            found.append(progress)
    rhos = sorted({progress.rho for progress in found}, key=lambda rho: rho or 0)
    if found:
        yield Picture.draw(
            f"{stem}-progress",
            f"Accuracy on {plain(split, 30)} over the steps of training, by method",
            f"Accuracy on {plain(split, 30)} during training: mean over seeds, and the band from "
            "the lowest to the highest.",
            partial(plots.progress_picture, found, rhos),
        )


def _setting(runs: Comparison, group: Group, curves: Curves, stem: str) -> dict[str, Any]:
    all_runs, split = [*group.runs, *group.without], runs.judged_split
    notes = [f"Curves: the first {_MOST_SEEDS} of {len(all_runs)} runs."]
    notes = notes if len(all_runs) > _MOST_SEEDS else []
    pictures = list(_training(group, curves, stem))
    if not pictures:
        notes.append("Training curves: no run has a metrics.jsonl that can be read.")
    matrices, images = [], None
    if group.runs:
        pictures += _scatter(runs, group, stem)
        matrices = list(tables.matrices(runs, group))
        if not matrices:
            notes.append(f"Confusion matrices: no run has them for {plain(split, 30)}.")
        images = disagreements(group, split)
    if isinstance(images, Disagreements) and images.kinds:
        pictures.append(_images(images, stem))
    elif isinstance(images, Disagreements):
        notes.append(f"f and g are right on the same images of {plain(split, 30)}.")
    if isinstance(images, str):
        notes.append(f"Images on which f and g disagree: not shown; {images}.")
        images = None
    return {
        "label": plain(group.label, 200),
        "anchor": stem,
        "notes": notes,
        "pictures": pictures,
        "matrices": matrices,
        "images": images,
        "runs": [_about(run, group) for run in all_runs],
    }


def _about(run: Run, group: Group) -> dict[str, str]:
    config = run.config or group.config
    return {
        "name": plain(run.name),
        "status": f"{run.results.steps:,} steps" if run.results else str(run.problem),
        "seeds": "seed {}, data.seed {}".format(*seeds_of(config, run.made_with)),
        "command": command_of(config)
        or "rebias-train --config CONFIG.yaml   # with the text below",
        "config": to_yaml(config),
    }


def _training(group: Group, curves: Curves, stem: str) -> Iterator[Picture]:
    panels = plots.training_panels(curves, _during(group))
    if panels:
        yield Picture.draw(
            f"{stem}-training",
            f"{', '.join(panels)} of {plain(group.label)} over the steps",
            "Training; a line a seed.",
            partial(plots.training_picture, panels),
        )


def _images(found: Disagreements, stem: str) -> Picture:
    """Return the picture of images on which f and g disagree."""
    told = "; ".join(
        f"{kind.title} on {kind.count:,}: "
        + ", ".join(f"{s.label} (f {s.f}, g {s.g})" for s in kind.samples)
        for kind in found.kinds
    )
    return Picture.draw(
        f"{stem}-images",
        f"Images of {found.split} on which f and g disagree; {told}",
        f"Where f and g disagree: {found.run}, {found.split}, as the networks see it. Below each "
        "image its class, and what f and g say.",
        partial(plots.disagreements_picture, found),
    )


def _scatter(runs: Comparison, group: Group, stem: str) -> Iterator[Picture]:
    """Yield f against g by class, as means over seeds; nothing without confusion matrices."""
    means = [
        # A class without samples is NaN, which counts in no mean.
        pd.DataFrame([score.by_class for score in runs.scores(group, network)]).mean()
        for network in ("f", "g0")
    ]
    names = pd.Series(next(run.results.classes for run in group.runs if run.results))
    classes = [*pd.concat([names, *means], axis=1).dropna().itertuples(index=False, name=None)]
    if classes:
        told = ", ".join(f"{plain(n, 24)} {100 * f:.0f}/{100 * g:.0f}" for n, f, g in classes[:20])
        yield Picture.draw(
            f"{stem}-classes",
            f"Accuracy of f against g by class, {plain(group.label)} on "
            f"{plain(runs.judged_split, 30)}: {told}",
            "A point a class, mean over seeds; above the line f is the better one.",
            partial(plots.scatter_picture, classes),
        )


def render(
    template: str, datasets: Sequence[Dataset], notes: Sequence[str], files: Sequence[str] = ()
) -> str:
    """Return the page or the Markdown.

    Args:
        template: ``report.html``, or ``report.md`` with the tables of the page, its pictures by
            their names, and each run's command.
        datasets: the parts of the page.
        notes: a line for each run that has no figures.
        files: names of the files that lie beside the page.
    """
    html = template.endswith(".html")
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if html else _escaped,
    )
    environment.filters.update(quote=quote, escaped=_escaped)
    return environment.get_template(template).render(
        datasets=datasets,
        notes=notes,
        files=files,
        introduction=_INTRODUCTION.replace("\n", " "),
        oracle=CHOICES["oracle"],
        version=version(),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    )


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, whatever a run may be called.

    As entities: not all readers of Markdown take a backslash before '<' or inside a table.
    """
    if isinstance(text, Markup):
        return text
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text).replace("&#10;", "<br>")
