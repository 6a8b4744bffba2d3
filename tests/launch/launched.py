"""The launcher as a separate process, and the processes below it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import ROOT
from tests.faults.processes import DEADLINE, Started, outliving


def started(*words: str, cwd: Path, before: Sequence[str] = (), **environment: str) -> Started:
    """Start ``python -m launch`` with these words; ``before`` is a command that starts it."""
    environment.setdefault("PYTHONPATH", str(ROOT))
    return Started([*before, sys.executable, "-m", "launch", *words], cwd, **environment)


def launch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the launcher to its end."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def agents(run: Started) -> list[int]:
    """Return the torchrun of a launcher."""
    return [pid for pid, line in outliving(run.mark).items() if "-m launch.local.agent " in line]


def ranks(run: Started) -> list[int]:
    """Return the processes of a launcher's ranks, in the order of the ranks."""
    found = []
    for pid, line in outliving(run.mark).items():
        if "-m launch.local.rank " not in line or "-m launch.local.agent " in line:
            continue
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [(int(v[5:]), pid) for v in variables if v.startswith(b"RANK=")]
    return [pid for _, pid in sorted(found)]


def state(folder: Path) -> dict:
    """Return the last state that a run wrote; empty before the first."""
    try:
        return json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return {}


def events(folder: Path) -> list[dict]:
    """Return the events that the launcher of a run has logged."""
    lines = (folder / "logs" / "launcher.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def wait_until(true: Callable[[], object], what: str, run: Started | None = None) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, f"{what}: never\n{run.said() if run else ''}"
        assert run is None or run.process.poll() is None, run.said()
        time.sleep(0.05)


def wait_for_step(run: Started, folder: Path, beyond: int) -> None:
    """Wait until a run is running and has done more than ``beyond`` steps."""

    def there() -> bool:
        found = state(folder)
        return found.get("status") == "running" and found["step"] > beyond

    wait_until(there, f"step {beyond}", run)


def plant_all(folder: Path, plans: Sequence[dict]) -> dict[str, str]:
    """Return the environment in which each of several failpoints works once."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, plan in enumerate(plans):
        plan["once"] = str(folder / f"has worked {number}")
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        f"for plan in {list(plans)!r}:\n"
        "    if os.environ.get('RANK') == str(plan['rank']) and not os.path.exists(plan['once']):\n"
        "        from tests.faults.failpoints import install\n"
        "        install(plan)\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}
