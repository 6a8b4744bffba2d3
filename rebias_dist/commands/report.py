"""Runs side by side: one page with tables and pictures, every figure with its error.

The page loads nothing and runs nothing: it can be read offline, sent, and kept. Beside it lie its
figures as CSV, its tables as Markdown and its pictures as PNG and SVG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rebias_dist import version
from rebias_dist.commands.parser import OneLineParser, run_cli
from rebias_dist.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError
from rebias_dist.reporting.runs import Group, find_runs, group_runs, read_run, splits_of
from rebias_dist.reporting.text import text_table

_EPILOG = """examples:
  rebias-report runs/demo-* --out report --name demo      report/demo.html, .md, .csv, pictures
  rebias-report runs                                      all runs in a folder
  rebias-report runs --text                               the table on the terminal, no files
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="rebias-report",
        description="Set runs side by side; runs that differ in their seeds alone are one row.",
        epilog=_EPILOG,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder or a folder of runs")
    parser.add_argument("--out", metavar="DIR", default="report", help="folder to write [report]")
    parser.add_argument("--name", default="results", help="with which files begin [results]")
    parser.add_argument("--text", action="store_true", help="print the table, write nothing")
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    arguments: argparse.Namespace = parser.parse_args(argv)
    if Path(arguments.name).name != arguments.name:
        raise ConfigError(
            f"--name: {arguments.name!r} is no name of a file; for a folder use --out"
        )
    return arguments


def main(argv: Sequence[str]) -> int:
    """Report on the runs of a command line; return 0, or 1 when none of them has results."""
    arguments = _parse(argv)
    groups, notes = group_runs([read_run(folder) for folder in find_runs(arguments.runs)])
    by_dataset: dict[str, list[Group]] = {}
    for group in groups:
        by_dataset.setdefault(group.config.data.dataset, []).append(group)
    for part in by_dataset.values():
        print("\n".join([*text_table(part), ""]))
    for note in notes:
        print(f"without figures: {note}")
    with_results = {d: part for d, part in by_dataset.items() if any(g.runs for g in part)}
    if not with_results:
        return EXIT_FAILED
    if not arguments.text:
        _write(Path(arguments.out), arguments.name, with_results, notes)
    return EXIT_FINISHED


def _write(out: Path, name: str, by_dataset: dict[str, list[Group]], notes: Sequence[str]) -> None:
    # matplotlib takes a second, which --text and usage errors do not wait for.
    from rebias_dist.reporting import csv_files, markdown, page

    groups = [group for part in by_dataset.values() for group in part]
    page_path, tables, runs, settings = (
        out / f"{name}{ending}" for ending in (".html", ".md", ".csv", "-settings.csv")
    )
    paths = [page_path, tables, runs, settings]
    try:
        out.mkdir(parents=True, exist_ok=True)
        csv_files.write_runs(runs, groups)
        csv_files.write_settings(settings, groups, splits_of(groups))
        parts: list[page.DatasetPart] = []
        of_settings: list[Path] = []
        for index, (dataset, part) in enumerate(by_dataset.items()):
            stem = name if len(by_dataset) == 1 else f"{name}-{_file_name(dataset, index)}"
            parts.append(page.dataset_part(dataset, part, stem))
            for picture, _ in parts[-1].pictures:
                paths += picture.write(out)
            for group in parts[-1].groups:
                for drawn in (group.training, group.scatter):
                    of_settings += drawn.write(out) if drawn else []
        tables.write_text(markdown.render(parts, notes), encoding="utf-8")
        html = page.render(parts, notes, [path.name for path in paths[1:]])
        page_path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {error.filename or out}: {error.strerror}") from None
    print(f"wrote {', '.join(map(str, paths))}")
    if of_settings:
        print(f"and {len(of_settings)} pictures of single settings beside them")


def _file_name(dataset: str, index: int) -> str:
    """Return a data set's name as a part of a file's name, which it may not be fit for."""
    letters = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in dataset)
    return letters if letters == dataset and len(dataset) < 60 else f"{letters[:60]}{index}"


def cli() -> None:
    """Console entry point."""
    run_cli("rebias-report", lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
