"""The figures of any checkpoints on any shards, for ``rebias-evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rebias_dist.config.data import resolved
from rebias_dist.config.schema import Config
from rebias_dist.data.normalisation import Normalise
from rebias_dist.data.watermark import Watermarked, checked_font
from rebias_dist.errors import ConfigError, DataError, RebiasError
from rebias_dist.evaluation.corruptions import corruption_figures
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.splits import evaluate_split
from rebias_dist.evaluation.subjects import (
    CheckpointRef,
    columns_of,
    find_checkpoints,
    find_splits,
    load_subject,
    open_splits,
)
from rebias_dist.evaluation.text import WATERMARKED
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.step.precision import Precision, set_products


def _evaluate(
    ref: CheckpointRef,
    config: Config | None,
    on: dict[str, Path],
    font: str | None,
    root: str | None,
    device: torch.device,
    consensus: Consensus,
) -> dict[str, Any]:
    """Return the figures of one checkpoint on its splits; a collective."""
    with consensus.together():
        subject = load_subject(ref, config, device)
        splits = open_splits(subject, on, root)
        columns = {name: columns_of(subject, dataset) for name, dataset in splits.items()}
        if consensus.rank == 0:
            for dataset in splits.values():
                dataset.check_files()
    if len(set(consensus.gather(subject.step))) > 1:
        raise ConfigError(
            f"{ref.source}: the ranks see different checkpoints; wait until the run has ended"
        )
    settings = subject.config
    set_products(settings.precision)
    precision = Precision(settings.precision, device)
    normalise = Normalise(subject.constants, precision.device, precision.parameters)
    evaluator = Evaluator.of(
        settings, subject.networks, normalise, precision, consensus, subject.rule
    )
    seen = {"": evaluator}
    if font is not None:
        marked = Watermarked(evaluator.transform, font)
        seen[WATERMARKED] = replace(evaluator, transform=marked)
    found: dict[str, Any] = {}
    for name, dataset in splits.items():
        for suffix, by in seen.items():
            figures = evaluate_split(by, dataset, subject.radii, columns[name], with_intervals=True)
            about = {"dataset": dataset.manifest.dataset, "split": dataset.manifest.split + suffix}
            about["folder"] = resolved(dataset.place)
            found[name + suffix] = {**about, "classes": list(dataset.manifest.classes), **figures}
    return {
        "checkpoint": ref.source,
        "choice": ref.choice,
        "select": settings.evaluate.select,
        "step": subject.step,
        "method": settings.method.name,
        "finished": ref.finished,
        "bias": subject.rule.model_dump(),
        "splits": found,
        "corruptions": corruption_figures(found),
    }


def evaluate_all(
    paths: Sequence[str],
    on: Sequence[str],
    font: str | None,
    root: str | None,
    config: Config | None,
    device: torch.device,
    consensus: Consensus,
) -> tuple[list[dict[str, Any]], list[RebiasError]]:
    """Evaluate checkpoints; a collective.

    Args:
        paths: runs, checkpoints of runs, or checkpoints of the public code.
        on: folders of shards; empty: the test splits of each run.
        font: file of the font in which ImageNet-W's watermark is drawn on the images of each split,
            for a second evaluation of it; None: no watermark.
        root: folder of the shards, in place of the run's own; None: the run's own.
        config: configuration for the public code's checkpoints, which contain none.
        device: of this rank.
        consensus: the ranks.

    Returns:
        The figures of each checkpoint, and the errors of those that cannot be evaluated.

    Raises:
        ConfigError: there are no shards in a folder of ``on``, or the font cannot be used.
    """
    with consensus.together():
        splits = find_splits(on)
        font = None if font is None else checked_font(font)
    evaluated: list[dict[str, Any]] = []
    problems: list[RebiasError] = []
    for path in paths:
        try:
            chosen: list[dict[str, Any]] = []
            with consensus.on_rank_zero() as leader:
                if leader:
                    chosen = [vars(ref) for ref in find_checkpoints(path)]
            by_step: dict[int | None, dict[str, Any]] = {}
            for values in consensus.broadcast(chosen):
                ref = CheckpointRef(**values)
                if ref.step not in by_step:
                    by_step[ref.step] = _evaluate(
                        ref, config, splits, font, root, device, consensus
                    )
                evaluated.append({**by_step[ref.step], "choice": ref.choice})
        except (ConfigError, DataError) as error:  # the same on all ranks
            problems.append(error)
    return evaluated, problems
