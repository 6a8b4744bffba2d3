"""The records that a run writes: metrics, TensorBoard, state, log files, progress.

====================  ==================================================================
``metrics.jsonl``     one JSON object a line: step, epoch, time and the scalars
``tensorboard/``      the same scalars under the same tags and steps; images, texts, hparams
``state.json``        the run's present state, replaced as a whole about once a second
``logs/rank<k>.log``  the log of rank k, the only file that ranks other than 0 write
====================  ==================================================================
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch

from data_shards.system.files import parse_json, write_synced
from rebias_dist.errors import RebiasError
from rebias_dist.telemetry.progress import Progress, Rate, describe

Status = Literal["starting", "running", "evaluating", "finished", "interrupted", "failed"]

_STATE_INTERVAL = 1.0  # seconds between two versions of state.json
_FLUSH_INTERVAL = 10  # seconds that TensorBoard's events may wait in memory
_FORMAT = "%(asctime)s %(levelname)s %(message)s"

_log = logging.getLogger("rebias_dist")
Method = TypeVar("Method", bound=Callable[..., None])


def _leader_writes(method: Method) -> Method:
    """Let a method act only on rank 0; an OSError becomes ``fault`` and ends all writing."""

    @functools.wraps(method)
    def guarded(self: Telemetry, *args: Any, **kwargs: Any) -> None:
        if not self.leader or self.fault is not None:
            return
        try:
            method(self, *args, **kwargs)
        except OSError as error:
            self.fault = _unwritable(self._folder, error)

    return cast(Method, guarded)


def _unwritable(folder: Path, error: OSError) -> RebiasError:
    return RebiasError(f"{folder}: cannot be written ({error.strerror or error})")


class Telemetry:
    """Writes the records of a run: log files on every rank, all others on rank 0 alone.

    The logger ``rebias_dist`` writes to ``logs/rank<k>.log``, and on rank 0 also to stderr, until
    ``close``. If a file cannot be written, such as on a full disk, ``fault`` holds the error and
    nothing more is written. It is not raised, because rank 0 must not leave alone: the trainer
    tells the other ranks.

    When a run resumes, records after ``start_step`` belong to lost steps, which will be taken
    again. They are dropped, so that each step is recorded once; with ``start_step`` 0 all records
    are dropped.

    Args:
        run_folder: folder of the run; made if it is missing.
        rank: this process's rank.
        total_steps: optimizer steps of the whole run.
        global_batch: images of an optimizer step, over all ranks.
        start_step: optimizer steps done before, when a run resumes.
        identity: constant entries of state.json (name, method, pid ...), plain JSON data.

    Raises:
        RebiasError: a file cannot be written.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        rank: int,
        total_steps: int,
        global_batch: int,
        start_step: int = 0,
        identity: Mapping[str, Any],
    ) -> None:
        self.leader = rank == 0
        self.fault: RebiasError | None = None
        self._folder = run_folder
        self._closed = False
        self._total_steps = total_steps
        self._global_batch = global_batch
        self._identity = dict(identity)
        self._status: Status | None = None
        self._next_state = -math.inf
        self._last_step = start_step
        try:
            self._detach_log = _attach_log(run_folder / "logs" / f"rank{rank}.log", self.leader)
            if self.leader:
                self._open(start_step)
        except OSError as error:
            raise _unwritable(run_folder, error) from None

    def _open(self, start_step: int) -> None:
        # Imported here because it takes a second and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        first_lost_step = start_step + 1 if start_step else 0
        metrics_path = self._folder / "metrics.jsonl"
        _drop_lost_steps(metrics_path, first_lost_step)
        # With line buffering each line is written at once and as a whole.
        self._metrics = metrics_path.open("a", buffering=1, encoding="utf-8")
        self._writer: Any = SummaryWriter(
            str(self._folder / "tensorboard"),
            purge_step=first_lost_step,
            flush_secs=_FLUSH_INTERVAL,
        )
        self._state_path = self._folder / "state.json"
        self._rate = Rate()
        self._rate.update(start_step, time.monotonic())
        self._progress = Progress(self._total_steps, start_step)

    @_leader_writes
    def scalars(self, step: int, values: Mapping[str, float], *, epoch: int) -> None:
        """Record scalars under their tags, in metrics.jsonl and in TensorBoard.

        A NaN or infinite value is logged as a warning. It is null in metrics.jsonl, because JSON
        has no such numbers; TensorBoard gets it unchanged.
        """
        now = time.time()
        record: dict[str, float] = {"step": step, "epoch": epoch, "time": now}
        for tag, number in values.items():
            record[tag] = value = float(number)  # it may be a tensor or a NumPy scalar
            if not math.isfinite(value):
                _log.warning("%s is %s at step %d", tag, value, step)
            self._writer.add_scalar(tag, value, step, walltime=now)
        self._metrics.write(json.dumps(_plain(record), allow_nan=False) + "\n")
        self._last_step = step

    @_leader_writes
    def progress(self, step: int, *, epoch: int, text: str, details: str = "") -> None:
        """Show that ``step`` steps are done; call it after every step, the display is throttled.

        Args:
            step: optimizer steps done.
            epoch: the current epoch.
            text: further text, such as the losses.
            details: text at the end, which may be cut off if the line is too long.
        """
        self._rate.update(step, time.monotonic())
        line = describe(epoch, text, self._images_per_s(), self._eta(step), details)
        self._progress.show(step, line)

    @_leader_writes
    def state(
        self, status: Status, *, step: int, epoch: int, force: bool = False, **more: Any
    ) -> None:
        """Replace state.json, at most once a second unless the status changes or ``force``.

        ``images_per_s`` and ``eta_seconds`` are those of training: time in any status but
        ``running`` is left out. They are null as long as they are unknown.

        Args:
            status: what the run is doing.
            step: optimizer steps done.
            epoch: the current epoch.
            force: write now.
            more: further entries, plain JSON data.
        """
        if status == "running":
            self._rate.resume(step, time.monotonic())
        else:
            self._rate.pause()
        if not force and status == self._status and time.monotonic() < self._next_state:
            return
        state = {
            **self._identity,
            **more,
            "status": status,
            "step": step,
            "total_steps": self._total_steps,
            "epoch": epoch,
            "eta_seconds": self._eta(step),
            "images_per_s": self._images_per_s(),
            "updated": time.time(),
        }
        # Replaced, so that a reader never sees half of it. Not synced to the disk, because after a
        # power failure its content would be out of date anyway.
        temporary = self._state_path.with_name("state.json.tmp")
        temporary.write_text(json.dumps(_plain(state), allow_nan=False, indent=1) + "\n")
        temporary.replace(self._state_path)
        if status != self._status:
            self.flush()
        self._status = status
        self._next_state = time.monotonic() + _STATE_INTERVAL

    @_leader_writes
    def text(self, tag: str, step: int, text: str) -> None:
        """Show a text (Markdown) in TensorBoard."""
        self._writer.add_text(tag, text, step)

    @_leader_writes
    def image(self, tag: str, step: int, image: torch.Tensor | np.ndarray[Any, Any]) -> None:
        """Show an image in TensorBoard: uint8, ``[3, height, width]``."""
        self._writer.add_image(tag, image, step)

    @_leader_writes
    def layout(self, layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Show scalars side by side in TensorBoard's tab "Custom scalars".

        Args:
            layout: ``["Multiline", tags]`` by category and title of the chart; TensorBoard matches
                each tag as a regular expression from its start.
        """
        self._writer.add_custom_scalars(layout)

    @_leader_writes
    def histogram(self, tag: str, step: int, values: torch.Tensor) -> None:
        """Show the distribution of the finite values in TensorBoard."""
        finite = values[values.isfinite()]
        if finite.numel():
            self._writer.add_histogram(tag, finite, step)

    @_leader_writes
    def embedding(
        self,
        tag: str,
        step: int,
        rows: torch.Tensor,
        columns: Sequence[str],
        about: Sequence[Sequence[str]],
        images: torch.Tensor,
    ) -> None:
        """Show points in TensorBoard's projector.

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
        shutil.rmtree(self._folder / "tensorboard" / f"{step:05d}" / tag, ignore_errors=True)
        kept = [list(row) for row, keep in zip(about, finite.tolist(), strict=True) if keep]
        self._writer.add_embedding(
            rows[finite], kept, images[finite], step, tag, metadata_header=list(columns)
        )

    def warning(self, kind: str, step: int, text: str) -> None:
        """Warn in the log and in TensorBoard, as the text ``warnings/<kind>``."""
        if self.leader:
            _log.warning("step %d: %s", step, text)
        self.text(f"warnings/{kind}", step, text)

    @_leader_writes
    def hparams(
        self, config: Mapping[str, str | int | float | bool], metrics: Mapping[str, float]
    ) -> None:
        """Show a configuration with its results in TensorBoard's table of hyperparameters.

        The results are scalars with the tag ``hparam/<name>`` at the last recorded step.

        Args:
            config: the fields of the configuration by their dotted names.
            metrics: the results by name.
        """
        from torch.utils.tensorboard.summary import hparams  # here for the same reason as in _open

        tagged = {f"hparam/{name}": value for name, value in metrics.items()}
        # SummaryWriter.add_hparams would write to a folder of its own, which TensorBoard shows as
        # a second run.
        summaries = hparams(dict(config), tagged)  # type: ignore[no-untyped-call]
        for summary in summaries:
            self._writer.file_writer.add_summary(summary)
        for tag, value in tagged.items():
            self._writer.add_scalar(tag, value, self._last_step)

    @_leader_writes
    def flush(self) -> None:
        """Write all scalars to the disk; call it before a checkpoint is saved.

        TensorBoard's events wait in memory for some seconds. A run that is killed then and resumes
        from that checkpoint would have a gap in its records.
        """
        self._writer.flush()
        os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Write what is pending, close the files, and detach from terminal and logger."""
        if self._closed:
            return
        self._closed = True
        if self.leader:
            self._progress.close()
            with contextlib.suppress(OSError):  # after a fault, which is reported already
                self._writer.close()
                self._metrics.close()
        self._detach_log()

    def _images_per_s(self) -> float | None:
        rate = self._rate.steps_per_second
        return None if rate is None else rate * self._global_batch

    def _eta(self, step: int) -> float | None:
        return self._rate.seconds_left(self._total_steps - step)


def _plain(value: Any) -> Any:
    """Return JSON data with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _drop_lost_steps(path: Path, first_lost_step: int) -> None:
    """Drop the lines of metrics.jsonl from ``first_lost_step`` on, and damaged lines."""
    if path.exists():
        write_synced(path, b"".join(_kept_lines(path, first_lost_step)))


def _kept_lines(path: Path, first_lost_step: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                # After a crash of the node or on a full disk the last line may be incomplete.
                step = parse_json(line)["step"]
            except (ValueError, KeyError, TypeError):
                step = None
            if not isinstance(step, int):
                _log.warning("%s: line %d is damaged and was dropped", path, number)
            elif step < first_lost_step:
                yield line.rstrip(b"\n") + b"\n"


class _LogFile(logging.FileHandler):
    """A log without a traceback for each line that a full disk refuses; metrics.jsonl tells it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _attach_log(path: Path, on_terminal: bool) -> Callable[[], None]:
    """Send the logger ``rebias_dist`` to a file and perhaps stderr; return what undoes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [_LogFile(path, encoding="utf-8")]
    if on_terminal:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        _log.addHandler(handler)
    level, propagate = _log.level, _log.propagate
    _log.setLevel(logging.INFO)
    # If a library gives the root logger a handler, every message would be shown twice.
    _log.propagate = False
    hook = threading.excepthook

    def without_tensorboard(raised: threading.ExceptHookArgs) -> None:
        # Its thread dies on a full disk; its next call raises the error here.
        if not type(raised.thread).__module__.startswith("tensorboard."):
            hook(raised)

    threading.excepthook = without_tensorboard

    def detach() -> None:
        threading.excepthook = hook
        for handler in handlers:
            _log.removeHandler(handler)
            with contextlib.suppress(OSError):  # it writes what a full disk has refused before
                handler.close()
        _log.setLevel(level)
        _log.propagate = propagate

    return detach
