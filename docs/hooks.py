"""What mkdocs fills in when it builds the site: the options of the commands and of a run."""

import argparse
import os
import re
import subprocess
import sys
from typing import Any

from rebias_dist.config.flags import add_config_flags

_HELP = re.compile(r"^\{\{ help: (.+) \}\}$", re.MULTILINE)
# Of rebias-train and rebias-evaluate: configuration.md has these fields.
_FIELDS = re.compile(r"\n\nrun:\n.*?(?=\n\nexamples:)", re.DOTALL)
# mkdocstrings does not know the roles of reStructuredText in docstrings.
_ROLE = re.compile(r":(?:class|data|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace ``{{ help: MODULE … }}`` and ``{{ fields }}``."""
    markdown = _HELP.sub(lambda match: _help(match[1].split()), markdown)
    return markdown.replace("{{ fields }}", _fields()) if "{{ fields }}" in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Remove the roles before names in docstrings."""
    return _ROLE.sub("", html)


def _help(command: list[str]) -> str:
    """Return what a command's ``--help`` prints, without the fields of a run."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        env=os.environ | {"COLUMNS": "88"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return f"```text\n{_FIELDS.sub('', done.stdout).strip()}\n```"


def _fields() -> str:
    """Return a table of the fields of each section of the configuration."""
    parser = argparse.ArgumentParser(add_help=False)
    add_config_flags(parser, {})
    lines: list[str] = []
    for group in parser._action_groups:
        rows = [action for action in group._group_actions if action.dest != "config"]
        if not rows:
            continue
        name, _, meaning = (group.title or "").partition(": ")
        lines += ["", f"## {name}", "", meaning.rstrip(":"), "", "| key | meaning |", "|---|---|"]
        for action in rows:
            text, _, default = (action.help or "").replace("%%", "%").rpartition(" [")
            values = f"`{action.metavar}`, default `{default[:-1]}`"
            lines.append(f"| `{action.dest}` | {text}<br>{values} |")
    return "\n".join(lines)
