"""How long do the commands take for which a user waits at a terminal?

    python -m benchmarks.startup [--quick] [--runs 200]

Whole processes are measured. Each includes the start of Python, which is the baseline; none should
import torch. The list is that of 200 finished runs with a thousand entries of metrics each.

A second table shows the stages of the demo on one rank until its first step is taken: at the first
start, which makes its shards from the embedded digits, and at later starts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Benchmark, in_turn, share, times_of

_ROOT = Path(__file__).resolve().parent.parent
_COMMANDS = {
    "import torch": ["-c", "import torch"],
    "rebias-train --help": ["-m", "rebias_dist.train", "--help"],
    "rebias-shards --help": ["-m", "data_shards", "--help"],
    "rebias-launch --help": ["-m", "launch", "--help"],
    "rebias-launch list": ["-m", "launch", "list"],
}


def make_runs(runs: Path, count: int) -> None:
    """Make the folders of finished runs."""
    for number in range(count):
        folder = runs / f"run-{number:04d}"
        folder.mkdir(parents=True)
        state = {"method": "rebias", "status": "finished", "step": 1000, "total_steps": 1000}
        (folder / "state.json").write_text(json.dumps({**state, "updated": time.time()}))
        (folder / "lock").touch()
        steps = ({"step": k, "f/loss": 0.5, "f/accuracy": 0.9, "g0/loss": 0.5} for k in range(1000))
        lines = [*map(json.dumps, steps), json.dumps({"step": 999, "unbiased/f_accuracy": 0.4})]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def first_steps(folder: str, runs: int) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the seconds of the demo's stages at the first start, and at ``runs`` later starts."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "REBIAS_CACHE": f"{folder}/cache"}
    found = []
    for number in range(1 + runs):
        place = Path(folder, f"first-{number}")
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.first_step", repr(time.time())],
            cwd=place, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found[0], found[1:]


def main() -> None:
    def count(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--runs", type=int, default=200)

    run = Benchmark("startup", __doc__, count)
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder) / "runs", run.options.runs)
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}

        def command(*words: str) -> None:
            subprocess.run(
                [sys.executable, *words], cwd=folder, env=environment, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip

        programs = {"python -c pass": lambda: command("-c", "pass")}
        programs |= {name: lambda w=words: command(*w) for name, words in _COMMANDS.items()}
        times = in_turn(programs, least=3 if run.options.quick else 11, seconds=0.0)
        first, later = first_steps(folder, runs=1 if run.options.quick else 5)
    table = run.table(
        "Milliseconds, median (smallest to largest)", "command", "time", "Python's share"
    )
    for name, taken in times.items():
        label = f"{name} of {run.options.runs} runs" if name.endswith(" list") else name
        table.add(label, taken, share(times["python -c pass"], taken))
    table = run.table(
        "The demo until its first step is taken, milliseconds, median (smallest to largest)",
        *("stage", "with its shards made", "with its shards there"),
    )
    for stage, seconds in first.items():
        table.add(stage, times_of([seconds]), times_of([found[stage] for found in later]))
    total = times_of([sum(found.values()) for found in later])
    table.add("all", times_of([sum(first.values())]), total)
    run.record()


if __name__ == "__main__":
    main()
