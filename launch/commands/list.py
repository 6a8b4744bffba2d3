"""Show all runs and their state.

The status is the last one that the run wrote. If no process works on the run any more, it is dead.
"""

from __future__ import annotations

import argparse

from launch.commands.common import add_runs_dir
from launch.record.display import table
from launch.record.runs import ACTIVE, find_runs, look_at
from rebias_dist.errors import EXIT_FINISHED

EXAMPLES = """
rebias-launch list
rebias-launch list --active
rebias-launch list --json | jq 'select(.status == "dead").name'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``list``."""
    add_runs_dir(parser)
    parser.add_argument("--active", action="store_true", help="only runs that work or are queued")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Print the runs."""
    runs = look_at(find_runs(arguments.runs_dir))
    if arguments.active:
        runs = [run for run in runs if run.status in ACTIVE]
    if arguments.json:
        for run in runs:
            print(run.to_json())
    elif runs:
        # The run with the newest news comes last, next to the prompt.
        print(table(sorted(runs, key=lambda run: -(run.age_seconds or 0.0))))
    else:
        print(f"no runs in {arguments.runs_dir}")
    return EXIT_FINISHED
