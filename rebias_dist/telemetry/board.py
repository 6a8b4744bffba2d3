"""TensorBoard: the records of a run as event files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rebias_dist.telemetry.tracker import Plain, Tracker

_FLUSH_INTERVAL = 10  # seconds that events may wait in memory


class TensorBoard(Tracker):
    """Writes a run's records for TensorBoard.

    Args:
        folder: of the event files.
        first_lost_step: TensorBoard does not show earlier records of this step and later ones.
    """

    def __init__(self, folder: Path, first_lost_step: int) -> None:
        # Imported here because it takes a second and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer: Any = SummaryWriter(
            str(folder), purge_step=first_lost_step, flush_secs=_FLUSH_INTERVAL
        )

    def scalars(self, step: int, values: Mapping[str, float], *, epoch: int, when: float) -> None:
        """Record scalars; NaN and infinite values stay what they are."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step, walltime=when)

    def text(self, tag: str, step: int, text: str) -> None:
        """Show a text (Markdown)."""
        self._writer.add_text(tag, text, step)

    def image(self, tag: str, step: int, image: NDArray[np.uint8]) -> None:
        """Show an image: uint8, ``[3, height, width]``."""
        self._writer.add_image(tag, image, step)

    def layout(self, layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Show scalars side by side in the tab "Custom scalars"."""
        self._writer.add_custom_scalars(layout)

    def histogram(self, tag: str, step: int, values: torch.Tensor) -> None:
        """Show the distribution of the finite values."""
        finite = values[values.isfinite()]
        if finite.numel():
            self._writer.add_histogram(tag, finite, step)

    def embedding(
        self,
        tag: str,
        step: int,
        rows: torch.Tensor,
        columns: Sequence[str],
        about: Sequence[Sequence[str]],
        images: torch.Tensor,
    ) -> None:
        """Show points in the projector.

        Args:
            tag: a name without slashes.
            step: optimizer steps done.
            rows: ``[n, d]``, the points; those that are not finite are left out.
            columns: names of the points' labels.
            about: the labels of each point, one for each column.
            images: ``[n, 3, side, side]`` in 0..1, one for each point.
        """
        finite = rows.isfinite().all(1)
        if not finite.any():
            return
        # Left by an attempt that was interrupted later; TensorBoard would print a warning.
        shutil.rmtree(self._folder / f"{step:05d}" / tag, ignore_errors=True)
        kept = [list(row) for row, keep in zip(about, finite.tolist(), strict=True) if keep]
        self._writer.add_embedding(
            rows[finite], kept, images[finite], step, tag, metadata_header=list(columns)
        )

    def final(self, step: int, config: Mapping[str, Plain], figures: Mapping[str, float]) -> None:
        """Show a configuration and its results in the table of hyperparameters.

        The results are scalars with the tag ``hparam/<name>``.
        """
        from torch.utils.tensorboard.summary import hparams  # here for the same reason as above

        tagged = {f"hparam/{name}": value for name, value in figures.items()}
        # SummaryWriter.add_hparams would write to a folder of its own, which TensorBoard shows as
        # a second run.
        summaries = hparams(dict(config), tagged)  # type: ignore[no-untyped-call]
        for summary in summaries:
            self._writer.file_writer.add_summary(summary)
        for tag, value in tagged.items():
            self._writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Write the events to the disk."""
        self._writer.flush()

    def close(self, status: str | None) -> None:
        """Write what is pending, and close the file."""
        self._writer.close()
