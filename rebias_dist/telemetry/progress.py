"""The speed of a run, and the progress line that shows it."""

from __future__ import annotations

import logging
import math
import os
import sys
from contextlib import ExitStack, suppress
from datetime import timedelta

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_BAR = 10  # characters that the bar has at least

_log = logging.getLogger("rebias_dist")


class Rate:
    """Steps per second, smoothed: a step's weight falls by e every ``memory`` seconds.

    Steps and seconds are both decayed sums, and the rate is their quotient. So the first
    measurements need no correction of a start value, and steps that are reported in groups
    count as much as steps that are reported one by one.

    Args:
        memory: time constant of the decay, in seconds.
    """

    def __init__(self, memory: float = 30.0) -> None:
        self.memory = memory
        self._steps = 0.0
        self._seconds = 0.0
        self._last: tuple[int, float] | None = None

    def update(self, step: int, now: float) -> None:
        """Note that ``step`` steps are done at ``now`` (seconds of a clock that never jumps)."""
        if self._last is not None:
            steps, seconds = step - self._last[0], now - self._last[1]
            decay = math.exp(-seconds / self.memory)
            self._steps = self._steps * decay + steps
            self._seconds = self._seconds * decay + seconds
        self._last = (step, now)

    def pause(self) -> None:
        """Leave out the time until ``resume`` or the next update: no training happens in it."""
        self._last = None

    def resume(self, step: int, now: float) -> None:
        """End a pause, if there is one, with ``step`` steps done at ``now``."""
        if self._last is None:
            self._last = (step, now)

    @property
    def steps_per_second(self) -> float | None:
        """Return the smoothed rate, None before there is one."""
        return self._steps / self._seconds if self._steps > 0 and self._seconds > 0 else None

    def seconds_left(self, steps: int) -> float | None:
        """Return the seconds that ``steps`` more steps take, None while the rate is unknown."""
        if steps <= 0:
            return 0.0
        rate = self.steps_per_second
        return None if rate is None else steps / rate


def describe(
    epoch: int,
    text: str,
    images_per_s: float | None,
    eta_seconds: float | None,
    details: str = "",
    room: int | None = None,
) -> str:
    """Return the part of the progress line after step/total; unknown numbers show as '?'.

    Args:
        epoch: the current epoch.
        text: such as the losses.
        images_per_s: speed of the run.
        eta_seconds: time that is left.
        details: further parts, separated by commas.
        room: longest length. Parts that do not fit are left out: first the details from their
            end, then the epoch, the speed and the text. None: no limit.
    """
    speed = "?" if images_per_s is None else f"{images_per_s:.4g}"
    eta = "?" if eta_seconds is None else str(timedelta(seconds=round(eta_seconds)))
    in_epoch, at_speed, more = f"epoch {epoch}", f"{speed} images/s", details.split(", ")
    parts = [in_epoch, text, at_speed, f"ETA {eta}", *more]
    expendable = [*reversed(more), in_epoch, at_speed, text]
    while room is not None and len(_joined(parts)) > room and expendable:
        parts.remove(expendable.pop(0))
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    return ", ".join(filter(None, parts))


class _Log:
    """A file for tqdm: each line that is written to it is logged."""

    def write(self, text: str) -> None:
        if line := text.strip():
            _log.info("%s", line)

    def flush(self) -> None:
        """Do nothing: log messages are not buffered."""


def _columns() -> int:
    """Return the width of the terminal at stderr; 0 if there is none, or none any more."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 0
    except OSError:  # it was closed since
        return 0


class Progress:
    """A bar at the bottom of the terminal, below log messages; elsewhere ordinary log lines.

    A terminal that is closed ends the display and nothing else: a run hears of it by SIGHUP, or
    goes on if that is ignored.

    Args:
        total_steps: steps of the whole run.
        start_step: steps that were done before, when a run resumes.
        interval: shortest time between two log lines in seconds; the first and the last step
            have a line in any case. A bar is redrawn ten times a second at most.
    """

    def __init__(self, total_steps: int, start_step: int = 0, interval: float = 10.0) -> None:
        # Containers and batch systems hand out terminals that are 0 columns wide.
        on_terminal = _columns() > 0
        self._total_steps = total_steps
        self._on_terminal = on_terminal
        self._redirect = ExitStack()
        if on_terminal:
            self._redirect.enter_context(logging_redirect_tqdm([_log]))
        # Rate and ETA come with the description, the same numbers as in state.json.
        bar = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            file=sys.stderr if on_terminal else _Log(),
            dynamic_ncols=on_terminal,
            leave=on_terminal,
            bar_format=bar if on_terminal else "step {n_fmt}/{total_fmt}{postfix}",
            mininterval=0.1 if on_terminal else interval,
            # Every update looks at the clock: steps differ too much in length (an evaluation,
            # a first step) for tqdm's guess of how many of them make up its interval.
            miniters=1,
            delay=0 if on_terminal else 1e-9,  # no log line before the first step
            disable=False,
        )
        self._bar.last_print_t = 0.0  # long ago, so the first step is shown at once

    @property
    def room(self) -> int | None:
        """Return the characters that a terminal has for the description; None: any number."""
        columns = _columns() if self._on_terminal else 0
        taken = len(f"100%|| {self._total_steps}/{self._total_steps}, ") + _BAR
        return columns - taken if columns else None

    def show(self, step: int, description: str) -> None:
        """Show that ``step`` steps are done, if what is shown is old enough."""
        if step >= self._total_steps:
            self._bar.mininterval = 0
        self._bar.set_postfix_str(description, refresh=False)
        with suppress(OSError):
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Show the last state, if it is not yet shown, and let the terminal go."""
        self._redirect.close()
        with suppress(OSError):
            if self._bar.n > self._bar.last_print_n:
                self._bar.refresh()
            self._bar.close()
