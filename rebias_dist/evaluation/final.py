"""The test of a run at its end, and how long it will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rebias_dist.assemble import Parts
from rebias_dist.config.schema import Config
from rebias_dist.evaluation import tensorboard
from rebias_dist.evaluation.closing import closing_groups, closing_text
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.splits import evaluate_checkpoints
from rebias_dist.ranks.waits import duration, told
from rebias_dist.runs import results
from rebias_dist.telemetry.writers import Telemetry

_log = logging.getLogger("rebias_dist")


class Forecast:
    """Says before a short run's test how long it will take; a trial of three steps is a short run.

    Args:
        config: of the run.
        parts: its data.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self._short = config.max_steps is not None and config.evaluate.final == "test"
        self._tested = sum(map(len, parts.data.tests.values()))
        self._monitored = sum(map(len, parts.data.monitored.values()))
        self._seconds: float | None = None  # per image, once there was an evaluation

    def announce(self, total_steps: int) -> None:
        """Say at the start that a test follows the last step."""
        if self._short:
            _log.info(
                "the test on %s images follows step %d; '--evaluate.final none' leaves it out",
                f"{self._tested:,}",
                total_steps,
            )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Note the time of an evaluation of the monitored splits."""
        begin = time.monotonic()
        yield
        self._seconds = (time.monotonic() - begin) / self._monitored

    def tell(self, checkpoints: int) -> None:
        """Say before the test about how long it takes."""
        if self._short and self._seconds is not None:
            seconds = checkpoints * self._tested * self._seconds
            _log.info("the test takes about %s", duration(seconds))


def test_and_record(
    config: Config,
    parts: Parts,
    evaluator: Evaluator,
    telemetry: Telemetry,
) -> dict[str, Any]:
    """Evaluate the last and the best checkpoint on test data, and write results.json.

    A collective.

    Args:
        config: of the run.
        parts: its data and its state at the end.
        evaluator: its evaluation.
        telemetry: receives the figures.

    Returns:
        The content of results.json.

    Raises:
        InterruptedRun: on all ranks, if one of them was asked to stop.
    """
    at, consensus = parts.snapshot, evaluator.consensus
    tested, lost = evaluate_checkpoints(evaluator, at, parts.folder.checkpoints)
    for choice, why in lost.items():
        _log.warning("the %s checkpoint is damaged and has no figures: %s", choice, why)
    final = results.assemble(config, parts.data.classes, tested, at.step, lost, parts.data.rule)
    told_of = told("results and TensorBoard", aloud=consensus.rank == 0)
    with consensus.on_rank_zero() as leader, told_of:
        if leader:
            results.write(parts.folder.results_file, final)
            tensorboard.show_final(telemetry, config, final, at.epoch)
            tensorboard.project(telemetry, config, parts.data, evaluator, at.step)
    consensus.agree(telemetry.fault)
    for line in closing_text(final, parts.folder.path).splitlines():
        _log.info("%s", line)
    for line in closing_groups(config, final):
        _log.info("%s", line)
    return final
