"""Runs side by side: one page with tables and pictures, every figure with its error.

The page loads nothing and runs nothing: it can be read offline, sent, and kept. Beside it lie its
figures as CSV, its tables as Markdown and its pictures as PNG and SVG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rebias_dist import version
from rebias_dist.commands.parser import OneLineParser, run_cli
from rebias_dist.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError
from rebias_dist.reporting.runs import Run, find_runs, read_run

if TYPE_CHECKING:
    from rebias_dist.reporting.comparison import Comparison

_EPILOG = """examples:
  rebias-report runs/demo-* --out report --name demo      report/demo.html, .md, .csv, pictures
  rebias-report runs                                      all runs in a folder
  rebias-report runs --text                               the table on the terminal, no files
  rebias-report runs --archive docs/results/mine          keep what a report needs, no weights;
                                                          rebias-report docs/results/mine reads it
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="rebias-report",
        description="Set runs side by side; runs that differ in their seeds alone are one row.",
        epilog=_EPILOG,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder or a folder of runs")
    parser.add_argument("--out", metavar="DIR", default="report", help="folder to write [report]")
    parser.add_argument("--name", default="results", help="beginning of file names [results]")
    parser.add_argument("--text", action="store_true", help="print the table, write nothing")
    parser.add_argument(
        "--published",
        action="store_true",
        help="show published figures beside runs that are not the published experiment too",
    )
    parser.add_argument(
        "--archive", metavar="DIR", help="copy what reports need of each run, some kB; no report"
    )
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    arguments: argparse.Namespace = parser.parse_args(argv)
    if Path(arguments.name).name != arguments.name:
        raise ConfigError(
            f"--name: {arguments.name!r} is not a valid file name; for a folder use --out"
        )
    return arguments


def main(argv: Sequence[str]) -> int:
    """Report on the runs of a command line; return 0, or 1 when none of them has results."""
    arguments = _parse(argv)
    # pandas takes a second, which --help and usage errors do not wait for.
    from rebias_dist.reporting.comparison import compare
    from rebias_dist.reporting.text import text_of

    found = [read_run(folder) for folder in find_runs(arguments.runs)]
    if arguments.archive is not None:
        return _archive(found, Path(arguments.archive))
    comparisons, notes = compare(found)
    for runs in comparisons:
        print(f"{text_of(runs)}\n")
    for note in notes:
        print(f"without figures: {note}")
    with_results = [runs for runs in comparisons if any(group.runs for group in runs.groups)]
    if not with_results:
        return EXIT_FAILED
    if not arguments.text:
        _write(Path(arguments.out), arguments.name, with_results, notes, arguments.published)
    return EXIT_FINISHED


def _archive(runs: Sequence[Run], out: Path) -> int:
    from rebias_dist.reporting.archive import archive

    for run in runs:
        if run.problem:
            print(f"left out: {run.name}: {run.problem}")
    folders = archive([run for run in runs if run.results], out)
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"wrote {folder} ({size / 1000:.0f} kB)")
    return EXIT_FINISHED if folders else EXIT_FAILED


def _write(
    out: Path,
    name: str,
    comparisons: Sequence[Comparison],
    notes: Sequence[str],
    with_published: bool,
) -> None:
    # matplotlib takes a second, which --text does not wait for.
    from rebias_dist.reporting import csv_files
    from rebias_dist.reporting.page import dataset_part, render

    endings = [".html", ".md", ".csv", "-settings.csv"]
    endings += ["-groups.csv"] * any(runs.grouped for runs in comparisons)
    page, tables, of_runs, of_settings, *of_groups = paths = [
        out / f"{name}{ending}" for ending in endings
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        csv_files.write_runs(of_runs, comparisons)
        csv_files.write_settings(of_settings, comparisons)
        for path in of_groups:
            csv_files.write_groups(path, comparisons)
        parts, single = [], 0
        for index, runs in enumerate(comparisons):
            several = f"-{_file_name(runs.dataset, index)}" * (len(comparisons) > 1)
            parts.append(dataset_part(runs, name + several, with_published=with_published))
            for picture in parts[-1].pictures:
                paths += picture.write(out)
            for setting in parts[-1].settings:
                for picture in setting["pictures"]:
                    single += len(picture.write(out))
        tables.write_text(render("report.md", parts, notes), encoding="utf-8")
        files = [path.name for path in paths[1:]]
        page.write_text(render("report.html", parts, notes, files), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {error.filename or out}: {error.strerror}") from None
    print(f"wrote {', '.join(map(str, paths))}")
    if single:
        print(f"and {single} pictures of single settings beside them")


def _file_name(dataset: str, index: int) -> str:
    """Return a data set's name with only characters that are safe in a file name."""
    letters = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in dataset)
    # A '~' is in no name that is kept, so no two data sets share their files.
    return letters if letters == dataset and len(dataset) < 60 else f"{letters[:60]}~{index}"


def cli() -> None:
    """Console entry point."""
    run_cli("rebias-report", lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
