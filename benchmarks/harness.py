"""Shared by all benchmarks: arguments, measuring in turn, tables, and the record."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import PIL
import torch

from benchmarks.compare import FORMAT

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Times:
    """Seconds of one program over its repeats."""

    smallest: float
    median: float
    largest: float
    repeats: int

    def __str__(self) -> str:
        """Return the milliseconds: the median, and in brackets the smallest and the largest."""
        smallest, median, largest = (
            f"{1e3 * seconds:.4g}" for seconds in (self.smallest, self.median, self.largest)
        )
        return f"{median} ({smallest} to {largest})"

    def __truediv__(self, count: int) -> Times:
        """Return the times for one of the ``count`` items that the program processed."""
        smallest, median, largest = (
            seconds / count for seconds in (self.smallest, self.median, self.largest)
        )
        return Times(smallest, median, largest, self.repeats)


@dataclass(frozen=True)
class Megabytes:
    """Memory in 10^6 bytes."""

    megabytes: float

    def __str__(self) -> str:
        return f"{self.megabytes:.0f}"


def in_turn(
    programs: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    least: int = 3,
    warm_up: bool = True,
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, Times]:
    """Run the programs in turn, until the first has run ``least`` times and for ``seconds``.

    They run in turn so that other work on the machine affects all of them equally. Before each
    run ``prepare(name)`` is called, which is not timed.
    """
    if warm_up:
        for name, program in programs.items():
            prepare(name)
            program()
    taken: dict[str, list[float]] = {name: [] for name in programs}
    first = next(iter(programs))
    while len(taken[first]) < least or sum(taken[first]) < seconds:
        for name, program in programs.items():
            prepare(name)
            begin = time.perf_counter()
            program()
            taken[name].append(time.perf_counter() - begin)
    return {name: times_of(seconds) for name, seconds in taken.items()}


def times_of(seconds: Sequence[float]) -> Times:
    """Summarise the seconds of repeated runs."""
    return Times(min(seconds), statistics.median(seconds), max(seconds), len(seconds))


def ratio(baseline: Times, ours: Times) -> str:
    """Return how many times as fast ours is: by the medians, and in brackets by the smallest."""
    medians, smallest = baseline.median / ours.median, baseline.smallest / ours.smallest
    return f"{medians:.2f} ({smallest:.2f})"


def peak_growth(function: Callable[[], object]) -> float:
    """Return the megabytes by which a call raises the peak memory of this process (Linux)."""
    # Not getrusage, whose peak cannot be reset and is inherited from the parent.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    function()
    return (_memory("VmHWM") - before) / 1024


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def share(limit: Times, ours: Times) -> str:
    """Return the limit in percent of ours, by the medians."""
    return f"{100 * limit.median / ours.median:.0f} %"


def in_fresh_process(function: Callable[..., float], *arguments: object) -> float:
    """Call a module-level function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@dataclass
class Table:
    """A Markdown table, printed row by row.

    ``baselines`` are the columns that do not measure our code but the usual way, or a limit.
    """

    title: str
    columns: Sequence[str]
    baselines: Sequence[str] = ()
    rows: list[list[object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Print title and header."""
        print(f"\n{self.title}\n\n| {' | '.join(self.columns)} |\n{'|---' * len(self.columns)}|")

    def add(self, *cells: object) -> None:
        """Add and print a row; times are shown in milliseconds, median (smallest to largest)."""
        assert len(cells) == len(self.columns)
        self.rows.append([asdict(c) if isinstance(c, Times | Megabytes) else str(c) for c in cells])
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


class Benchmark:
    """One run of one benchmark: its options, its tables and its record."""

    def __init__(
        self,
        name: str,
        doc: str | None,
        add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    ) -> None:
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{name}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--quick", action="store_true", help="small cases, to see that it runs; no record"
        )
        parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
        parser.add_argument(
            "--results", type=Path, default=RESULTS, metavar="DIR", help="where the record goes"
        )
        add_arguments(parser)
        self.name = name
        self.options = parser.parse_args()
        self.tables: list[Table] = []
        torch.set_num_threads(self.options.threads)
        self.machine = machine()
        print(", ".join(f"{key} {value}" for key, value in self.machine.items()), flush=True)

    def table(self, title: str, *columns: str, baselines: Sequence[str] = ()) -> Table:
        """Begin a table."""
        assert set(baselines) <= set(columns)
        self.tables.append(Table(title, columns, baselines))
        return self.tables[-1]

    def record(self) -> None:
        """Write the tables to ``<results>/<name>.json``, unless it is a quick run."""
        if self.options.quick:
            return
        # Paths belong to this machine and have no influence on the measurements.
        options = {k: v for k, v in vars(self.options).items() if not isinstance(v, Path)}
        content = {
            "format": FORMAT,
            "benchmark": self.name,
            "machine": self.machine,
            "options": options,
            "tables": [asdict(table) for table in self.tables],
        }
        if str(self.machine["commit"]).endswith("-dirty"):
            print("warning: the code differs from its commit, so this record cannot be repeated")
        self.options.results.mkdir(parents=True, exist_ok=True)
        path = self.options.results / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"\nrecorded in {path}")


def machine() -> dict[str, str | int]:
    """Return date, processor, cores, threads, MALLOC_ variables, versions and commit, by name."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [s for s in information.read_text().splitlines() if s.startswith("model name")]
        processor = names[0].partition(": ")[2] if names else processor
    packages = ("torch", "torchvision", "numpy", "webdataset", "adamp")
    malloc = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("MALLOC_")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": processor,
        "cores": os.cpu_count() or 1,
        "memory GB": round(memory / 1e9),
        "system": platform.release(),
        "threads": torch.get_num_threads(),
        "malloc": " ".join(sorted(malloc)) or "default",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "pillow": PIL.__version__,  # of pillow-simd, if that is installed instead
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit, with ``-dirty`` if files other than records and docs differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    code = (".", ":(exclude)benchmarks/results", ":(exclude)docs")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")
