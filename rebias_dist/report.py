"""Runs side by side: a table, a CSV file and a picture, every figure with its error."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rebias_dist.cli import OneLineParser, run_cli, version
from rebias_dist.config import Config
from rebias_dist.config_files import flat
from rebias_dist.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError
from rebias_dist.report_picture import draw
from rebias_dist.run_results import (
    Group,
    Run,
    chance_of,
    find_runs,
    group_runs,
    read_run,
    splits_of,
)

CHECKPOINTS = ("best", "last")

# ReBias (Bahng et al., ICML 2020), table 1: accuracy on the unbiased test set of Biased-MNIST, in
# percent, by the training correlation.
_PUBLISHED = {
    "vanilla": {0.999: 10.4, 0.997: 33.4, 0.995: 72.1, 0.99: 89.1},
    "biased": {0.999: 10.0, 0.997: 10.0, 0.995: 10.0, 0.99: 10.0},
    "learned_mixin": {0.999: 12.1, 0.997: 50.2, 0.995: 78.2, 0.99: 88.3},
    "rubi": {0.999: 13.7, 0.997: 43.0, 0.995: 90.4, 0.99: 93.6},
    "rebias": {0.999: 22.7, 0.997: 64.2, 0.995: 76.0, 0.99: 88.1},
}
# The protocol under which they were measured; a run under any other is not set beside them.
_PROTOCOL = {
    "data.dataset": "biased_mnist",
    "data.selection": "none",
    "data.image_size": 28,
    "data.confusing_colours": 9,
    "epochs": 80,
    "global_batch": 256,
    "micro_batch": 256,
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 1e-4,
    "scheduler.name": "step",
    "scheduler.step_size": 20,
    "scheduler.gamma": 0.1,
    "radius.f": 1.0,
    "radius.g": 1.0,
    "f.kernel_size": 7,
    "g.0.kernel_size": 1,
}
_MNIST_TEST_DIGITS = 10_000


def published(group: Group) -> float | None:
    """Return the published unbiased accuracy in [0, 1] where the protocol is the very same."""
    settings = flat(group.config.model_dump())
    if any(settings.get(key) != value for key, value in _PROTOCOL.items()):
        return None
    if set(splits_of([group]).get("unbiased", [])) != {_MNIST_TEST_DIGITS}:
        return None  # not MNIST's own test digits
    percent = _PUBLISHED[group.config.method.name].get(group.config.data.rho)
    return None if percent is None else percent / 100


def table(groups: Sequence[Group]) -> list[str]:
    """Return the lines of the table of runs on one data set."""
    splits, chance = splits_of(groups), chance_of(groups)
    lines = [f"data set {groups[0].config.data.dataset}; accuracy in percent"]
    for split, sizes in splits.items():
        size = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,}-{max(sizes):,}"
        level = "" if chance is None else f", chance {100 * chance:.1f}"
        lines.append(f"  {split}: {size} samples{level}")
    if splits:
        lines.append(
            "  a ± b: mean and standard deviation over seeds; a (b): one seed, binomial s.e."
        )
    for checkpoint in CHECKPOINTS:
        title = "best checkpoint, chosen on held-out training samples"
        lines += ["", title if checkpoint == "best" else "last checkpoint"]
        rows = [["method", "net", "seeds", *splits]]
        for group in groups:
            rows += _rows(group, checkpoint, list(splits))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    for group in groups:
        figure, known = group.figure("last", "unbiased", "f"), published(group)
        if figure and known is not None:
            lines += [
                "",
                f"{group.label}: unbiased {figure}, published {100 * known:.1f} (ReBias, table 1)",
            ]
    return lines


def _rows(group: Group, checkpoint: str, splits: Sequence[str]) -> Iterable[list[str]]:
    label = group.label
    if checkpoint == "best" and group.is_oracle:
        label += " [ORACLE: chosen on TEST data; the result is 'last']"
    if not group.runs:
        yield [f"{label}: no results", *[""] * (2 + len(splits))]
        return
    seeds = str(len(group.runs))
    seeds += f" of {len(group.runs) + group.missing}" if group.missing else ""
    # f and g0 have a line in every method, so that the lines of methods compare.
    for network in dict.fromkeys(["f", "g0", *group.networks]):
        figures = [group.figure(checkpoint, split, network) for split in splits]
        yield [label, network, seeds, *("–" if f is None else str(f) for f in figures)]


def _write_csv(path: Path, groups: Iterable[Group]) -> None:
    """Write one row for each run, checkpoint, split and network; nothing averaged."""
    columns = "dataset method setting run seed data_seed checkpoint chosen_on step split network"
    columns += " samples correct accuracy chance"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        for group in groups:
            for run in group.runs:
                writer.writerows(_csv_rows(group, run, run.config or group.config))


def _csv_rows(group: Group, run: Run, config: Config) -> Iterable[list[object]]:
    results = run.results
    assert results is not None
    of_run = [results.dataset, results.method, group.label, run.name, config.seed, config.data.seed]
    for name, checkpoint in results.checkpoints.items():
        of_checkpoint = [name, results.chosen_on if name == "best" else "", checkpoint.step]
        for split, part in checkpoint.splits.items():
            for network, score in part.networks.items():
                yield [
                    *of_run,
                    *of_checkpoint,
                    split,
                    network,
                    part.samples,
                    score.correct,
                    score.accuracy,
                    1 / len(results.classes),
                ]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="rebias-report",
        description="Set runs side by side; runs that differ in their seeds alone are one row.",
        epilog="example: rebias-report runs/demo-* --out report --name demo",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder or a folder of runs")
    parser.add_argument("--out", metavar="DIR", default="report", help="folder to write [report]")
    parser.add_argument("--name", default="results", help="name of the .csv and .png [results]")
    parser.add_argument("--text", action="store_true", help="print the table, write nothing")
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    arguments: argparse.Namespace = parser.parse_args(argv)
    return arguments


def main(argv: Sequence[str]) -> int:
    """Report on the runs of a command line; return 0, or 1 when none of them has results."""
    arguments = _parse(argv)
    groups, notes = group_runs([read_run(folder) for folder in find_runs(arguments.runs)])
    by_dataset: dict[str, list[Group]] = {}
    for group in groups:
        by_dataset.setdefault(group.config.data.dataset, []).append(group)
    for part in by_dataset.values():
        print("\n".join([*table(part), ""]))
    for note in notes:
        print(f"without figures: {note}")
    with_results = {d: part for d, part in by_dataset.items() if any(g.runs for g in part)}
    if not with_results:
        return EXIT_FAILED
    if not arguments.text:
        _write(Path(arguments.out), arguments.name, with_results)
    return EXIT_FINISHED


def _write(out: Path, name: str, by_dataset: dict[str, list[Group]]) -> None:
    paths = [out / f"{name}.csv"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_csv(paths[0], [group for part in by_dataset.values() for group in part])
        for dataset, part in by_dataset.items():
            paths.append(out / (f"{name}-{dataset}.png" if len(by_dataset) > 1 else f"{name}.png"))
            draw(paths[-1], part)
    except OSError as error:
        raise ConfigError(f"--out: {error.filename or out}: {error.strerror}") from None
    print(f"wrote {', '.join(map(str, paths))}")


def cli() -> None:
    """Console entry point."""
    run_cli("rebias-report", lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
