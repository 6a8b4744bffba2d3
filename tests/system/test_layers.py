"""The layers that setup.cfg declares hold, and an import that breaks them is found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("rebias_dist", "data_shards", "launch", "benchmarks")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports_command as c; c()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("data_shards/errors.py", "", None),
        ("rebias_dist/objectives/tiles.py", "import rebias_dist.train", "Rooms of rebias_dist"),
        ("rebias_dist/step/adamp.py", "from rebias_dist.runs import saver", "Rooms of rebias_dist"),
        ("data_shards/errors.py", "import rebias_dist.errors", "Benchmarks and launch"),
        (
            "data_shards/system/files.py",
            "import data_shards.commands.check",
            "Rooms of data_shards",
        ),
    ],
)
def test_an_upward_import_is_found(tmp_path, file, line, broken):
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert (done.returncode != 0) == (broken is not None), done.stdout + done.stderr
    if broken:
        assert re.search(f"{broken}.* BROKEN", done.stdout)
