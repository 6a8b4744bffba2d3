"""Draw the records side by side: how many times faster than what is usual.

    python -m benchmarks plot [--results DIR] [--out docs/speed.png]

Each bar is a ratio of medians that one run of a benchmark has found, the dot that of its fastest
repeats. Left of the line at 1 the usual way is faster.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.compare import IncomparableError, read_record
from benchmarks.harness import RESULTS
from rebias_dist.reporting.svg import BLUE, INK, MUTED, canvas, style


@dataclass(frozen=True)
class Bar:
    """One ratio of a record: the column of the row that has all these cells."""

    label: str
    benchmark: str
    cells: tuple[str, ...]
    column: str

    def read(self, folder: Path) -> tuple[float, float]:
        """Return the ratio of the medians and that of the smallest.

        Raises:
            IncomparableError: no such record, row or column; one line names it.
        """
        path = folder / f"{self.benchmark}.json"
        for table in read_record(path)["tables"]:
            if self.column not in table["columns"]:
                continue
            place = table["columns"].index(self.column)
            for row in table["rows"]:
                if all(cell in row for cell in self.cells):
                    median, _, smallest = row[place].partition(" (")
                    return float(median), float(smallest.rstrip(")"))
        where = ", ".join(self.cells)
        raise IncomparableError(f"{path}: has no {self.column!r} of {where}; measure it again")


_RESNETS = "ResNet-18, BagNet-18"
BARS = (
    Bar(
        "step, ResNet-18 and BagNet-18, 224²: the public algorithm",
        *("step", (_RESNETS, "public"), "baseline / ours"),
    ),
    Bar(
        "step, Biased-MNIST's networks: the public algorithm",
        *("step", ("simple_convnet 7 and 1", "public"), "baseline / ours"),
    ),
    Bar(
        "step in 8 micro-batches: accumulation that is not exact",
        *("step", ("naive",), "baseline / ours"),
    ),
    Bar(
        "two ranks: one process, the same cores",
        *("scaling", (_RESNETS, "2"), "one process / this"),
    ),
    Bar("AdamP, ResNet-18: the adamp package", "optimizer", ("resnet18",), "package / ours"),
    Bar("HSIC, N = 4,096: whole matrices", "hsic", ("4096",), "trace / ours"),
    Bar(
        "median radius, 203,200 pairs: pair by pair",
        *("median", ("203,200",), "pair by pair / ours"),
    ),
    Bar("the same: matrices as lists", "median", ("203,200",), "lists / ours"),
    Bar(
        "checkpoint, time that training waits: in the foreground",
        *("checkpoint", (), "foreground / waits"),
    ),
    Bar(
        "loading, 2 workers: ImageFolder and Pillow",
        *("loader", ("baseline", "2"), "ImageFolder / ours"),
    ),
    Bar(
        "loading, 2 workers: webdataset and torchvision",
        *("loader", ("baseline", "2"), "webdataset / ours"),
    ),
    Bar(
        "converting, 2 workers: Pillow's load, no check, no sync",
        *("convert", ("2",), "usual / convert"),
    ),
)


def draw(bars: Sequence[Bar], folder: Path) -> Figure:
    """Return the figure of the records in ``folder``."""
    ratios = [bar.read(folder) for bar in bars]
    with style():
        figure = canvas(8.0, 0.36 * len(bars) + 0.9)
        axes = figure.subplots()
        places = range(len(bars), 0, -1)
        axes.barh(places, [median - 1 for median, _ in ratios], left=1, color=BLUE, height=0.6)
        axes.plot([smallest for _, smallest in ratios], places, "o", color=INK, markersize=3)
        axes.axvline(1, color=MUTED, linewidth=1)
        axes.set_xscale("log")
        for place, (median, smallest) in zip(places, ratios, strict=True):
            text = f"{median:.3g}"
            axes.annotate(
                text,
                (max(median, smallest, 1), place),
                xytext=(6, 0),
                textcoords="offset points",
                verticalalignment="center",
            )
        axes.set_yticks(places, [bar.label for bar in bars])
        axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axes.minorticks_off()
        axes.set_xlim(min(0.8, *(min(pair) for pair in ratios)) * 0.95, 90)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("times faster than the way named behind the colon")
    return figure


def main(arguments: Sequence[str]) -> int:
    """Write the picture; return 0.

    Raises:
        IncomparableError: a record or one of its figures is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="where the records are"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/speed.png"), metavar="FILE", help="the picture"
    )
    options = parser.parse_args(arguments)
    figure = draw(BARS, options.results)
    with style():
        figure.savefig(options.out, dpi=150, facecolor="white")
    print(f"{options.out}: {len(BARS)} ratios of {options.results}")
    return 0
