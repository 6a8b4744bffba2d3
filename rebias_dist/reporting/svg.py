"""Figures of matplotlib as files, and as SVG that takes its colours from the page it lies in.

Drawn with matplotlib's objects alone: no window, no display, no global state.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours of Okabe and Ito, which every colour vision tells apart. Beside the colour, a shape
# tells things apart too.
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY = "#cc79a7", "#56b4e9"
INK, MUTED, GRID = "#1b1b1b", "#6e6e6e", "#e2e2e2"

F_COLOUR, F_MARKER = BLUE, "o"
G_COLOUR, G_MARKER = VERMILION, "^"

# The names that the page's style sheet gives them, for light and for dark.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    VERMILION: "--vermilion",
    PURPLE: "--purple",
    SKY: "--sky",
}
_SETTINGS = {
    "text.parse_math": False,  # names of runs are no formulas
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and copied
}


@contextmanager
def style() -> Iterator[None]:
    """Set the style of the pictures while figures are made and saved."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():  # type: ignore[arg-type]
        # A name may have characters that the font lacks: they are shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class Picture:
    """A figure that is drawn once and is shown in the page and kept in files.

    Args:
        name: of its files.
        alternative: what is said in its place to who cannot see it.
        make: draws it.
    """

    def __init__(self, name: str, alternative: str, make: Callable[[], Figure]) -> None:
        self.name = name
        self.alternative = alternative
        with style(), mpl.rc_context({"svg.hashsalt": name}):
            self._figure = make()
            drawn = _saved(self._figure, "svg", metadata={"Date": None}, facecolor="none")
        # The layout is found; finding it again would take as long as drawing.
        self._figure.set_layout_engine("none")
        self._svg = drawn.decode()
        self.inline = _for_page(self._svg, name)

    def write(self, folder: Path) -> list[Path]:
        """Write it as PNG and as SVG, on white; return the paths."""
        paths = [folder / f"{self.name}.png", folder / f"{self.name}.svg"]
        with style():
            paths[0].write_bytes(_saved(self._figure, "png", dpi=150, facecolor="white"))
        paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
        body = self._svg.index(">", self._svg.index("<svg")) + 1
        svg = self._svg[:body] + paper + self._svg[body:]
        paths[1].write_text(svg, encoding="utf-8")
        return paths


def _saved(figure: Figure, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def _for_page(svg: str, name: str) -> str:
    """Return an SVG element whose colours are the page's and whose ids are its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9]", "-", name)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    # Only inside tags: a run's name that looks like a colour stays what it is.
    return re.sub(r"<[^>]*>", lambda tag: _recoloured(tag[0]), body)


def _recoloured(tag: str) -> str:
    return re.sub(
        "|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found[0]]}, {found[0]})", tag
    )


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Let an axis go from 0 to 100 percent."""
    (axes.set_ylim if which == "y" else axes.set_xlim)(-3, 103)
