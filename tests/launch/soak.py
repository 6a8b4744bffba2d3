"""Minutes of supervised training with kills at random moments, and the cost of the kills.

    python -m tests.launch.soak --minutes 5 --kills 3 --out docs/reliability.md

At each moment it kills rank 0, rank 1 or torchrun with SIGKILL. It reports the time until the kill
was detected, until the next step, and until the run was back at the step of the kill; and the share
of time that was not lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from tests.faults.processes import Started
from tests.launch.launched import agents, events, ranks, started, state

_CHECKPOINT_STEPS = 20
_SETTLE = 20.0  # seconds of undisturbed training at both ends, and between two kills


@dataclass
class Kill:
    """One kill and its effects; times in seconds after it."""

    target: str
    at: float
    """Seconds after the first step."""
    step: int
    detected: float = 0.0
    next_step: float = 0.0
    caught_up: float = 0.0
    lost_steps: int = 0


def _wait(true: Callable[[], Any], run: Started, seconds: float = 1000) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end or run.process.poll() is not None:
            run.end(0.1)
            raise SystemExit(f"error: the run does not go on:\n{run.said()[-3000:]}")
        time.sleep(0.05)


def _moments(chance: random.Random, seconds: float, kills: int) -> list[float]:
    """Return random moments that leave time to recover in between."""
    slack = seconds - (kills + 1) * _SETTLE
    if slack < 0:
        raise SystemExit(f"error: {kills} kills need {(kills + 1) * _SETTLE / 60:.1f} minutes")
    offsets = sorted(chance.uniform(0, slack) for _ in range(kills))
    return [offset + (number + 1) * _SETTLE for number, offset in enumerate(offsets)]


def _kill(run: Started, folder: Path, target: str, begin: float) -> Kill:
    """Kill a process and wait until the run is back at the step of the kill."""
    pid = agents(run)[0] if target == "torchrun" else ranks(run)[int(target[-1])]
    known = len(events(folder))
    step = state(folder)["step"]
    now = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    kill = Kill(target, now - begin, step)

    def end() -> dict | None:
        return next((e for e in events(folder)[known:] if e["event"] == "end"), None)

    _wait(end, run)
    kill.detected = end()["detected"] - now
    from_step = end()["checkpoint"] or 0

    def stepped() -> bool:
        found = state(folder)
        began = any(e["event"] == "start" for e in events(folder)[known:])
        return began and found.get("status") == "running" and from_step < found["step"]

    version = os.stat(folder / "state.json").st_ino
    _wait(lambda: os.stat(folder / "state.json").st_ino != version and stepped(), run)
    kill.next_step = time.monotonic() - now
    _wait(lambda: stepped() and state(folder)["step"] >= step, run)
    kill.caught_up = time.monotonic() - now
    kill.lost_steps = max(0, step - from_step)
    return kill


def soak(folder: Path, minutes: float, kills: int, seed: int) -> tuple[list[Kill], dict[str, Any]]:
    """Train for some minutes with some kills; return the kills and figures of the whole run."""
    chance = random.Random(seed)
    words = ["local", "biased_mnist/demo", "--ranks", "2", "--name", "soak"]
    fields = {"epochs": 100_000, "evaluate.every_epochs": 100_000}
    fields |= {"checkpoint.every_steps": _CHECKPOINT_STEPS}
    settings = [f"--{key}={value}" for key, value in fields.items()]
    run = started(*words, "--", *settings, cwd=folder)
    runs = folder / "runs/soak"
    _wait(lambda: state(runs).get("status") == "running", run)
    begin = time.monotonic()
    done: list[Kill] = []
    for moment in _moments(chance, 60 * minutes, kills):
        _wait(lambda moment=moment: time.monotonic() - begin >= moment, run, 60 * minutes)
        done.append(_kill(run, runs, chance.choice(("rank 0", "rank 1", "torchrun")), begin))
        print(done[-1], flush=True)
    _wait(lambda: time.monotonic() - begin >= 60 * minutes, run, 60 * minutes)
    run.process.send_signal(signal.SIGTERM)
    ended = run.end()
    lines = [json.loads(line) for line in (runs / "metrics.jsonl").read_text().splitlines()]
    taken = [(line["step"], line["time"]) for line in lines if "f/loss" in line]
    if [step for step, _ in taken] != list(range(1, len(taken) + 1)):
        raise SystemExit("error: steps are missing or were recorded twice")
    gaps = [(b[1] - a[1]) for a, b in itertools.pairwise(taken)]
    # The gap at the begin of an attempt includes detection, restart and repeated steps.
    begins = {event["checkpoint"] for event in events(runs) if event["event"] == "start"}
    lost = [gap for (step, _), gap in zip(taken, gaps, strict=False) if step in begins]
    usual = statistics.mean(
        gap for (step, _), gap in zip(taken, gaps, strict=False) if step not in begins
    )
    return done, {
        "exit code": ended.code,
        "left behind": len(ended.left),
        "steps": len(taken),
        "seconds": taken[-1][1] - taken[0][1],
        "seconds a step": usual,
        "goodput": 1 - sum(gap - usual for gap in lost) / sum(gaps),
    }


def report(kills: list[Kill], whole: dict[str, Any], seed: int) -> str:
    """Return the result as Markdown."""
    rows = [
        f"| {k.at:.0f} s | {k.target} | {k.step} | {k.detected:.1f} s | {k.next_step:.1f} s "
        f"| {k.caught_up:.1f} s | {k.lost_steps} |"
        for k in kills
    ]
    load = os.getloadavg()[1]
    return "\n".join(
        [
            "# Reliability",
            "",
            f"`make soak` trains `biased_mnist/demo` on two ranks for "
            f"{whole['seconds'] / 60:.1f} minutes under `rebias-launch local`, with a checkpoint "
            f"every {_CHECKPOINT_STEPS} steps, and kills (SIGKILL) rank 0, rank 1 or torchrun at "
            f"{len(kills)} random moments.",
            "",
            f"**Goodput {whole['goodput']:.1%}**: the share of the time that was not lost to "
            "detection, restart and steps taken again. A kill costs the same however long the "
            f"run is, here {statistics.mean(k.caught_up for k in kills):.0f} s on average, so "
            "what is lost falls with the kills an hour.",
            "",
            "| moment | killed | at step | detected after | next step after | caught up after "
            "| steps taken again |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{whole['steps']} steps of {whole['seconds a step']:.2f} s, each recorded once and in "
            f"order. Ended by SIGTERM with exit code {whole['exit code']} (interrupted, to be "
            f"resumed); processes left behind: {whole['left behind']}.",
            "",
            f"{datetime.now():%Y-%m-%d}, {os.cpu_count()} cores of {platform.machine()}, load "
            f"{load:.1f} (more than one per core stretches all times), Python "
            f"{platform.python_version()}, torch {torch.__version__}, seed {seed}. Most of the "
            "time to the next step is that of starting Python and importing torch.",
            "",
        ]
    )


def main() -> int:
    """Run the soak and write its report; 0 if the run survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the moments")
    parser.add_argument("--out", type=Path, help="file for the report, which is also printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, whole = soak(Path(folder), options.minutes, options.kills, options.seed)
    text = report(kills, whole, options.seed)
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0 if whole["exit code"] == 75 and not whole["left behind"] else 1


if __name__ == "__main__":
    sys.exit(main())
