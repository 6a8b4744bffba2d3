"""Figures of matplotlib as PNG and as SVG; in a page the SVG takes the colours of the page.

Only matplotlib's objects are used: no window, no display, no global state.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours of Okabe and Ito, which every colour vision tells apart. Beside the colour, a shape
# tells things apart too.
BLUE, GREEN, VERMILION, PURPLE = "#0072b2", "#009e73", "#d55e00", "#cc79a7"
INK, MUTED = "#1b1b1b", "#6e6e6e"

# The names of the colours in report.css, which has them for light and for dark.
_VARIABLES = {INK: "--ink", MUTED: "--muted", "#e2e2e2": "--line", "#ffffff": "--paper"}
_VARIABLES |= {BLUE: "--blue", GREEN: "--green", VERMILION: "--vermilion", PURPLE: "--purple"}


@contextmanager
def style() -> Iterator[None]:
    """Set the style of the pictures while figures are made and saved."""
    sheet = resources.files(__package__) / "templates" / "report.mplstyle"
    with (
        resources.as_file(sheet) as path,
        mpl.style.context(path),
        warnings.catch_warnings(),
    ):
        # A name may have characters that the font lacks: they are shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that needs no display."""
    return Figure(figsize=(width, height), layout="constrained")


@dataclass(frozen=True)
class Picture:
    """A drawn figure, for the page and for files."""

    name: str
    """The stem of its files."""
    alternative: str
    """A text for readers who cannot see it."""
    caption: str
    svg: str
    png: bytes

    @classmethod
    def draw(cls, name: str, alternative: str, caption: str, make: Callable[[], Figure]) -> Picture:
        """Make a figure and draw it as SVG and as PNG."""
        # The salt makes the ids of clip paths and marks the picture's own: a page holds many.
        with style(), mpl.rc_context({"svg.hashsalt": name}):
            figure = make()
            svg, png = io.BytesIO(), io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            # The layout is found; finding it again would take as long as drawing.
            figure.set_layout_engine("none")
            figure.savefig(png, format="png", dpi=150)
        return cls(name, alternative, caption, svg.getvalue().decode(), png.getvalue())

    def write(self, folder: Path) -> list[Path]:
        """Write it as PNG and as SVG; return the paths."""
        paths = [folder / f"{self.name}.png", folder / f"{self.name}.svg"]
        paths[0].write_bytes(self.png)
        paths[1].write_text(self.svg, encoding="utf-8")
        return paths

    @property
    def inline(self) -> str:
        """Return the SVG element for a page: in the page's colours, without ids it may repeat."""
        body = re.sub(r"<metadata>.*?</metadata>", "", self.svg, flags=re.DOTALL)
        body = re.sub(r'<g id="\w+">', "<g>", body[body.index("<svg") :])

        def recoloured(tag: re.Match[str]) -> str:
            return re.sub(
                "|".join(_VARIABLES), lambda c: f"var({_VARIABLES[c[0]]}, {c[0]})", tag[0]
            )

        # Only inside tags: a class that is called like a colour keeps its name.
        return re.sub(r"<[^>]*>", recoloured, body)


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Let an axis go from 0 to 100 percent."""
    (axes.set_ylim if which == "y" else axes.set_xlim)(-3, 103)
