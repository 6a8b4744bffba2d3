"""What a shell is told when somebody presses the tabulator key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SCRIPTS = {
    "rebias-train": "rebias_dist.commands.train",
    "rebias-evaluate": "rebias_dist.commands.evaluate",
    "rebias-sweep": "launch.commands.sweep",
    "rebias-report": "rebias_dist.commands.report",
    "rebias-export": "rebias_dist.commands.export",
    "rebias-shards": "data_shards.__main__",
    "rebias-launch": "launch.__main__",
}


def completions(line: str, cwd: Path) -> set[str]:
    """Ask a console script, as bash does, how a line could go on."""
    script = line.split()[0]
    answer = cwd / "answer"
    environment = {
        **os.environ,
        **{"PYTHONPATH": str(ROOT), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"},
        **{"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_COMP_WORDBREAKS": ""},
        **{"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SHELL": "bash"},
    }
    code = f"import sys; sys.argv = [{script!r}]; from {SCRIPTS[script]} import cli; cli()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in answer.read_text().split("\n") if word.strip()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rebias-train --data.rh", {"--data.rho"}),
        ("rebias-train --precision b", {"bf16"}),
        ("rebias-evaluate --js", {"--json"}),
        ("rebias-sweep --dry", {"--dry-run"}),
        ("rebias-report --ou", {"--out"}),
        ("rebias-export --ou", {"--out"}),
        ("rebias-shards insp", {"inspect"}),
        ("rebias-shards check --js", {"--json"}),
        ("rebias-launch tens", {"tensorboard"}),
        ("rebias-launch local --max", {"--max-restarts"}),
        ("rebias-launch logs fir", {"first"}),
        ("rebias-launch stop --runs-dir elsewhere sec", {"second"}),
    ],
)
def test_each_console_script_completes(tmp_path, line, expected):
    for runs, name in (("runs", "first"), ("elsewhere", "second")):
        (tmp_path / runs / name).mkdir(parents=True)
        (tmp_path / runs / name / "config.yaml").touch()
    assert completions(line, tmp_path) == expected


def test_all_console_scripts_are_here():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entries = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    assert {entry.split(" = ")[0]: entry.split(" = ")[1] for entry in entries} == {
        script: f"{module}:cli" for script, module in SCRIPTS.items()
    }
