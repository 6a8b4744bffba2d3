"""Draw the records side by side: how many times as fast as the usual way.

    python -m benchmarks plot [--results DIR] [--out docs/speed.png]

Each bar is a ratio of medians in one run of a benchmark; the dot is the ratio of the fastest
repeats. Left of the line at 1 the usual way is faster.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.compare import IncomparableError, read_record
from benchmarks.harness import RESULTS
from rebias_dist.reporting.svg import BLUE, INK, MUTED, canvas, style


@dataclass(frozen=True)
class Bar:
    """One ratio of a record: in ``column`` of the first row with these ``cells``, by column."""

    label: str
    benchmark: str
    cells: Mapping[str, str]
    column: str

    def read(self, folder: Path) -> tuple[float, float]:
        """Return the ratio of the medians and that of the smallest times.

        Raises:
            IncomparableError: the record, row or column is missing; one line names it.
        """
        path = folder / f"{self.benchmark}.json"
        for table in read_record(path).tables:
            for cells in table.rows:
                row = dict(zip(table.columns, cells, strict=True))
                if self.column in row and self.cells.items() <= row.items():
                    median, _, smallest = str(row[self.column]).partition(" (")
                    return float(median), float(smallest.rstrip(")"))
        where = ", ".join(f"{name} {value}" for name, value in self.cells.items())
        raise IncomparableError(
            f"{path}: has no {self.column!r} for {where}; run the benchmark again"
        )


_RESNETS = "ResNet-18, BagNet-18"
_CONVNETS = "simple_convnet 7 and 1"
_TWO = {"images": "baseline", "workers": "2"}
BARS = (
    Bar(
        "step, ResNet-18 and BagNet-18 at 224² vs. the public algorithm",
        "step",
        {"networks": _RESNETS, "baseline": "public"},
        "baseline / ours",
    ),
    Bar(
        "step, Biased-MNIST's networks vs. the public algorithm",
        "step",
        {"networks": _CONVNETS, "baseline": "public"},
        "baseline / ours",
    ),
    Bar(
        "step in 8 micro-batches vs. accumulation that is not exact",
        "step",
        {"baseline": "naive"},
        "baseline / ours",
    ),
    Bar(
        "two ranks vs. one process on the same two cores",
        "scaling",
        {"networks": _RESNETS, "W": "2"},
        "one process / this",
    ),
    Bar(
        "AdamP, ResNet-18 vs. the adamp package",
        "optimizer",
        {"network": "resnet18"},
        "package / ours",
    ),
    Bar("HSIC, N = 4,096 vs. whole matrices", "hsic", {"N": "4096"}, "trace / ours"),
    Bar(
        "median radius, 203,200 pairs vs. pair by pair",
        "median",
        {"pairs": "203,200"},
        "pair by pair / ours",
    ),
    Bar("the same vs. matrices as lists", "median", {"pairs": "203,200"}, "lists / ours"),
    Bar(
        "checkpoint, how long training waits vs. in the foreground",
        "checkpoint",
        {},
        "foreground / waits",
    ),
    Bar(
        "loading, 2 workers vs. ImageFolder and Pillow",
        "loader",
        _TWO,
        "ImageFolder / ours",
    ),
    Bar(
        "loading, 2 workers vs. webdataset and torchvision",
        "loader",
        _TWO,
        "webdataset / ours",
    ),
    Bar(
        "converting, 2 workers vs. Pillow's load, without checks or sync",
        "convert",
        {"workers": "2"},
        "usual / convert",
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
            axes.annotate(
                f"{median:.3g}",
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
        axes.set_xlabel("how many times as fast")
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
