"""Run the benchmarks, compare two records, or draw them.

    python -m benchmarks                     all of them, one after the other
    python -m benchmarks hsic step           these two
    python -m benchmarks --quick             small cases, to see that they run
    python -m benchmarks compare A.json B.json
    python -m benchmarks plot                draw the records: docs/speed.png

Each is also a program of its own: python -m benchmarks.hsic --help
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.compare import IncomparableError, compare

_NOT_BENCHMARKS = ("__init__", "__main__", "harness", "compare", "plot", "first_step")
_NEEDS_GPU = ("gpu", "gpu_parts")  # python -m benchmarks.gpu


def names() -> list[str]:
    """Return the names of the benchmarks; each is one file and answers one question."""
    found = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in found if name not in _NOT_BENCHMARKS + _NEEDS_GPU)


def run_all(chosen: list[str], options: list[str]) -> int:
    """Run benchmarks in processes of their own; return how many failed."""
    failed = []
    for name in chosen:
        print(f"\n==== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options]).returncode:
            failed.append(name)
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def told(work: Callable[..., int], *arguments: object) -> int:
    """Return the exit code of work on records; 2 and one line if they cannot be compared."""
    try:
        return work(*arguments)
    except IncomparableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 success, 1 a failure or a slower record, 2 wrong use."""
    if arguments[:1] == ["plot"]:
        # Imported here because matplotlib and torch take seconds and the others need neither.
        from benchmarks import plot

        return told(plot.main, arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; compare or plot"
    )
    parser.add_argument("--quick", action="store_true", help="small cases; no record")
    parser.add_argument("--results", metavar="DIR", help="where the records go")
    options: Any = parser.parse_args(arguments)
    if options.names[:1] == ["compare"]:
        if len(options.names) != 3:
            parser.error("compare takes two records: compare A.json B.json")
        return told(compare, *map(Path, options.names[1:]))
    unknown = [name for name in options.names if name not in names()]
    if unknown:
        print(
            f"error: no benchmark {unknown[0]!r}; there are {', '.join(names())}", file=sys.stderr
        )
        return 2
    passed_on = ["--quick"] * options.quick
    if options.results:
        passed_on += ["--results", options.results]
    return min(run_all(options.names or names(), passed_on), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
