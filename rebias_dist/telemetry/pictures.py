"""Pictures for TensorBoard, from numpy arrays to uint8 images ``[3, height, width]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VISIBLE_SIDE = 64  # smaller images are enlarged in a grid until they have so many pixels a side
_GAP = 2  # pixels between the images of a grid
_MANY_CELLS = 400  # with more cells numbers would not be readable, so only colours are shown
_LABELS = 40  # with more entries only every n-th of an axis has a name


def confusion_image(
    matrix: NDArray[Any],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    row_axis: str = "label",
    column_axis: str = "prediction",
) -> NDArray[np.uint8]:
    """Draw a matrix of counts or accuracies with its values in the cells.

    The colours run from 0 to the largest count, or from 0 to 1 for accuracies. The colour map is
    cividis, which looks the same with and without colour blindness.

    Args:
        matrix: ``[C, K]``; integers are counts, floating-point numbers accuracies in [0, 1].
            NaN is a cell without samples and stays empty.
        row_labels: C names.
        column_labels: K names.
        title: shown above.
        row_axis: name of the vertical axis.
        column_axis: name of the horizontal axis.

    Returns:
        uint8 ``[3, height, width]``.

    Raises:
        ValueError: the number of names differs from the shape of the matrix.
    """
    if matrix.shape != (len(row_labels), len(column_labels)):
        raise ValueError(
            f"matrix of shape {matrix.shape} has {len(row_labels)} row labels and "
            f"{len(column_labels)} column labels; give one label a row and a column"
        )
    # Imported here because matplotlib takes a second, and only rank 0 draws. Not pyplot, which
    # keeps figures in global state and looks for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = matrix.shape
    are_counts = np.issubdtype(matrix.dtype, np.integer)
    top = max(1, int(matrix.max(initial=0))) if are_counts else 1.0
    with_values = matrix.size <= _MANY_CELLS
    cell = 0.55 if with_values else 0.2  # inches
    width, height = (float(np.clip(n * cell, 2.4, 14)) for n in (columns, rows))
    # The margins, in inches, are rules of thumb: matplotlib's layout engines take as long as the
    # whole rest, and a run draws a dozen of these at its end.
    slanted = max(map(len, column_labels), default=0) > 3
    left = 0.7 + 0.08 * max(map(len, row_labels), default=0)
    below = 0.6 + (0.06 * max(map(len, column_labels)) if slanted else 0)
    total = left + width + 0.2, below + height + 0.4
    with rc_context({"text.parse_math": False}):  # names are no formulas: a class may be '$$'
        figure = Figure(figsize=total, dpi=100)
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.add_axes(
            (left / total[0], below / total[1], width / total[0], height / total[1])
        )
        axes.imshow(matrix, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        axes.set_title(title)
        axes.set_ylabel(row_axis)
        axes.set_xlabel(column_axis)
        row_ticks, column_ticks = (range(0, n, -(-n // _LABELS)) for n in (rows, columns))
        axes.set_yticks(row_ticks, [row_labels[i] for i in row_ticks])
        axes.set_xticks(
            column_ticks,
            [column_labels[i] for i in column_ticks],
            rotation=45 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else "default",
        )
        if with_values:
            for (row, column), value in np.ndenumerate(matrix):
                if np.isfinite(value):
                    # The lower half of cividis is dark.
                    ink = "white" if value < top / 2 else "black"
                    text = f"{value:d}" if are_counts else f"{value:.2f}"
                    axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)
        return np.ascontiguousarray(pixels[:, :, :3].transpose(2, 0, 1))


def sample_grid(images: NDArray[np.uint8], columns: int = 8) -> NDArray[np.uint8]:
    """Lay images out row by row on a grid; small ones are enlarged by an integer factor.

    Every pixel becomes a square (nearest neighbour), so that the grid shows exactly what the
    network sees.

    Args:
        images: uint8 ``[n, 3, h, w]``, at least one.
        columns: images in a row.

    Returns:
        uint8 ``[3, height, width]``; the background is white.

    Raises:
        ValueError: there are no images.
    """
    n, channels, height, width = images.shape
    if n == 0:
        raise ValueError("a grid needs at least 1 image")
    factor = max(1, -(-_VISIBLE_SIDE // max(height, width)))
    height, width = height * factor, width * factor
    columns = min(columns, n)
    rows = -(-n // columns)
    grid = np.full(
        (channels, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP),
        255,
        dtype=np.uint8,
    )
    for index, image in enumerate(images):
        top = index // columns * (height + _GAP)
        left = index % columns * (width + _GAP)
        enlarged = image.repeat(factor, axis=1).repeat(factor, axis=2)
        grid[:, top : top + height, left : left + width] = enlarged
    return grid
