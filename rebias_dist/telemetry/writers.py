"""The records that a run writes: metrics, TensorBoard, state, log files, progress.

====================  ==================================================================
``metrics.jsonl``     one JSON object a line: step, epoch, time and the scalars
``tensorboard/``      the same scalars under the same tags and steps; images, texts, hparams;
                      with ``log.to: [tensorboard]``
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
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast

import numpy as np
import torch

from rebias_dist.errors import RebiasError
from rebias_dist.telemetry.board import TensorBoard
from rebias_dist.telemetry.json_lines import JsonLines, plain
from rebias_dist.telemetry.progress import Progress, Rate, describe
from rebias_dist.telemetry.tracker import Apart, Plain, Record, Tracker

Status = Literal["starting", "running", "evaluating", "finished", "interrupted", "failed"]

_STATE_INTERVAL = 1.0  # seconds between two versions of state.json
_FORMAT = "%(asctime)s %(levelname)s %(message)s"

_log = logging.getLogger("rebias_dist")
Method = TypeVar("Method", bound=Callable[..., None])
P = ParamSpec("P")


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
        tensorboard: whether to write for TensorBoard.
        apart: further places for the records, on rank 0.

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
        tensorboard: bool = True,
        apart: Sequence[Apart] = (),
    ) -> None:
        self.board: TensorBoard | None = None
        """On rank 0, if the run writes for TensorBoard."""
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
        self._own: list[Tracker] = []
        self._apart = apart
        self.shows_images = self.leader and (tensorboard or bool(apart))
        """Whether an image that is given here is seen anywhere: metrics.jsonl has none."""
        try:
            self._detach_log = _attach_log(run_folder / "logs" / f"rank{rank}.log", self.leader)
            if self.leader:
                self._open(start_step, tensorboard)
        except OSError as error:
            raise _unwritable(run_folder, error) from None

    def _open(self, start_step: int, tensorboard: bool) -> None:
        first_lost_step = start_step + 1 if start_step else 0
        self._own.append(JsonLines(self._folder / "metrics.jsonl", first_lost_step))
        if tensorboard:
            self.board = TensorBoard(self._folder / "tensorboard", first_lost_step)
            self._own.append(self.board)
        self._state_path = self._folder / "state.json"
        self._rate = Rate()
        self._rate.update(start_step, time.monotonic())
        self._progress = Progress(self._total_steps, start_step)

    def _record(self, record: Record, *, important: bool = False) -> None:
        for own in self._own:
            record(own)
        for apart in self._apart:
            apart.put(record, important=important)

    @_leader_writes
    def scalars(self, step: int, values: Mapping[str, float], *, epoch: int) -> None:
        """Record scalars under their tags.

        A NaN or infinite value is logged as a warning. It is null in metrics.jsonl, because JSON
        has no such numbers; the other places get it unchanged.
        """
        now = time.time()
        # A value may be a tensor or a NumPy scalar.
        numbers = {tag: float(value) for tag, value in values.items()}
        for tag, value in numbers.items():
            if not math.isfinite(value):
                _log.warning("%s is %s at step %d", tag, value, step)
        self._record(lambda to: to.scalars(step, numbers, epoch=epoch, when=now))
        self._last_step = step

    @_leader_writes
    def progress(self, step: int, *, epoch: int, text: str, details: str = "") -> None:
        """Show that ``step`` steps are done; call it after every step, the display is throttled.

        Args:
            step: optimizer steps done.
            epoch: the current epoch.
            text: further text, such as the losses.
            details: parts at the end, separated by commas; a narrow terminal shows fewer of them.
        """
        self._rate.update(step, time.monotonic())
        room = self._progress.room
        line = describe(epoch, text, self._images_per_s(), self._eta(step), details, room)
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
        temporary.write_text(json.dumps(plain(state), allow_nan=False, indent=1) + "\n")
        temporary.replace(self._state_path)
        if status != self._status:
            self.flush()
        self._status = status
        self._next_state = time.monotonic() + _STATE_INTERVAL

    @_leader_writes
    def text(self, tag: str, step: int, text: str) -> None:
        """Record a text (Markdown)."""
        self._record(lambda to: to.text(tag, step, text))

    @_leader_writes
    def image(self, tag: str, step: int, image: torch.Tensor | np.ndarray[Any, Any]) -> None:
        """Record an image: uint8, ``[3, height, width]``."""
        pixels = np.asarray(image)
        self._record(lambda to: to.image(tag, step, pixels))

    @_leader_writes
    def show(
        self, method: Callable[Concatenate[TensorBoard, P], None], *args: P.args, **more: P.kwargs
    ) -> None:
        """Call a method of :class:`TensorBoard`, if the run writes for it."""
        if self.board is not None:
            method(self.board, *args, **more)

    def warning(self, kind: str, step: int, text: str) -> None:
        """Warn in the log and in the text ``warnings/<kind>``."""
        if self.leader:
            _log.warning("step %d: %s", step, text)
        self.text(f"warnings/{kind}", step, text)

    @_leader_writes
    def final(self, config: Mapping[str, Plain], figures: Mapping[str, float]) -> None:
        """Record the final figures at the last recorded step.

        Args:
            config: the fields of the configuration by their dotted names.
            figures: the results by name.
        """
        step = self._last_step
        self._record(lambda to: to.final(step, config, figures), important=True)

    @_leader_writes
    def flush(self) -> None:
        """Write all scalars to the disk; call it before a checkpoint is saved.

        TensorBoard's events wait in memory for some seconds. A run that is killed then and resumes
        from that checkpoint would have a gap in its records.
        """
        self._record(lambda to: to.flush())

    def close(self) -> None:
        """Write what is pending, close the files, and detach from terminal and logger."""
        if self._closed:
            return
        self._closed = True
        if self.leader:
            self._progress.close()
            for own in self._own:
                with contextlib.suppress(OSError):  # after a fault, which is reported already
                    own.close(self._status)
            for apart in self._apart:
                apart.end(self._status)
            for apart in self._apart:
                # torchrun kills a run that was told to stop after 30 seconds.
                apart.wait(hurry=self._status != "finished")
        self._detach_log()

    def _images_per_s(self) -> float | None:
        rate = self._rate.steps_per_second
        return None if rate is None else rate * self._global_batch

    def _eta(self, step: int) -> float | None:
        return self._rate.seconds_left(self._total_steps - step)


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
