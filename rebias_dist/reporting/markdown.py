"""The tables of a report as Markdown, for a repository or a pull request."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from rebias_dist import version
from rebias_dist.reporting.page import DatasetPart
from rebias_dist.reporting.tables import Table

# All but words and a few marks; an underscore means something at the edge of a word alone.
_SPECIAL = re.compile(r"[^\w\u00a0 .,:;'/()%±+=–×…-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render(datasets: Sequence[DatasetPart], notes: Sequence[str]) -> str:
    """Return the tables of the page, its pictures by their names, and each run's command.

    Args:
        datasets: what there is to show.
        notes: a line for each run that has no figures.
    """
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    lines = ["# Results", "", f"Written by `rebias-report` of rebias-dist {version()}, {date}."]
    for part in datasets:
        lines += ["", f"## {_escaped(part.name)}", ""]
        lines += [f"{_escaped(part.chance)}.", ""] if part.chance else []
        lines += [f"**{_escaped(part.protocol)}**", ""]
        for picture, caption in part.pictures:
            name = quote(f"{picture.name}.png")
            lines += [f"![{_escaped(picture.alternative)}]({name})", "", _escaped(caption), ""]
        for table in part.tables:
            lines += [*_table(table), ""]
        lines += ["### Commands", "", *_commands(part)]
    if notes:
        lines += ["", "## Runs without figures", "", *(f"* {_escaped(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> Iterator[str]:
    yield f"### {_escaped(table.caption)}"
    yield ""
    yield _row([_escaped(head) for head in table.head])
    yield _row(["---" if table.is_text(i) else "---:" for i in range(len(table.head))])
    for row in table.rows:
        yield _row([_escaped(c.text) + (f"<br>{_escaped(c.small)}" * bool(c.small)) for c in row])
    for note in table.notes:
        yield ""
        yield _escaped(note)


def _commands(part: DatasetPart) -> Iterator[str]:
    for group in part.groups:
        yield f"{_escaped(group.label)}:"
        yield ""
        yield "```sh"
        yield from (run.command for run in group.runs)
        yield "```"
        yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, whatever a run may be called.

    As entities: not all readers of Markdown take a backslash before '<' or inside a table.
    """
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)
