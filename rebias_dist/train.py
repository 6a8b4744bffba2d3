"""Train f and g against each other: the whole run, from top to bottom.

torchrun --nproc_per_node=2 -m rebias_dist.train --config biased_mnist/demo
"""

from __future__ import annotations

if __name__ == "__main__":
    # Ahead of the import of torch, so that --help and usage errors answer at once.
    from rebias_dist.commands.train import cli

    cli()  # it ends the process

import gc
import logging
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from rebias_dist import assemble
from rebias_dist.config import plan
from rebias_dist.config.files import flat
from rebias_dist.config.schema import Config
from rebias_dist.data.workers import bounded_waits, undisturbed
from rebias_dist.errors import InterruptedRun, NonFiniteError, RolledBack
from rebias_dist.evaluation import groups, tensorboard
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.final import Forecast, test_and_record
from rebias_dist.evaluation.method_engine import MethodEngine
from rebias_dist.evaluation.splits import check_select, evaluate_splits, too_small
from rebias_dist.ranks.equal_weights import check_equal_weights
from rebias_dist.ranks.faults import origin
from rebias_dist.ranks.process_group import resolve_placement, set_time_out
from rebias_dist.ranks.session import Session, session
from rebias_dist.ranks.waits import told
from rebias_dist.runs import checkpoint, results
from rebias_dist.runs.resumption import resume_run
from rebias_dist.runs.run_folder import fresh_name
from rebias_dist.step.precision import choose_algorithms, set_products
from rebias_dist.telemetry import dashboard
from rebias_dist.telemetry.trackers import check_trackers

log = logging.getLogger("rebias_dist")


def main(config: Config, resume: str = "auto", overrides: Collection[str] = ()) -> dict[str, Any]:
    """Train as a configuration says, on the ranks of the environment or on this process alone.

    Args:
        config: a resolved configuration; without a name the run gets a fresh one.
        resume: continue an existing run of this name: ``auto``, ``never`` or ``must``.
        overrides: keys (``optimizer.lr``, ``manifest.train``) in which a resumed run may differ
            from what it was.

    Returns:
        The content of results.json: the test figures of the last and the best checkpoint. Empty if
        ``evaluate.final`` is ``none``.

    Raises:
        RebiasError: one of the expected errors, alike on all ranks; or a RankError, which is
            this rank's alone.
    """
    placement = resolve_placement()
    plan.check_world(config, placement.world_size)
    settings = flat(config.model_dump())
    set_products(config.precision)
    # Before session() makes the process group, which depends on it.
    choose_algorithms(config.deterministic)
    with session(placement, config.device, config.faults.start_minutes, settings) as ranks:
        name = ranks.consensus.broadcast(config.name or fresh_name(config))
        data = assemble.as_recorded(config.data)
        config = config.model_copy(update={"name": name, "data": data})
        # A rollback starts anew in this process, in the same way as a resumed run.
        while True:
            try:
                with ExitStack() as held:
                    return Trainer(config, ranks, held).run(resume, overrides)
            except RolledBack:
                resume = "auto"
            # DDP refers to the networks in cycles. Else they may lie in memory beside the new ones.
            gc.collect()


class Trainer:
    """One run, from its start or its newest checkpoint to its final figures.

    Args:
        config: with a name, and the data section as recorded.
        ranks: this rank and its connection to the others.
        held: closes what is open for the whole run, such as the lock on its folder.
    """

    def __init__(self, config: Config, ranks: Session, held: ExitStack) -> None:
        self.config, self.ranks, self.held = config, ranks, held
        self.consensus, self.leads = ranks.consensus, ranks.consensus.rank == 0
        with self.consensus.on_rank_zero() as leader:
            if leader:
                check_trackers(config)
        # Before the parts are built: that may fetch data.
        held.enter_context(bounded_waits(config.faults.step_minutes, lambda: bool(ranks.stop)))
        self.parts = parts = assemble.build(config, ranks.consensus, ranks.device)
        self.at = parts.snapshot
        self.evaluator = Evaluator.of(
            config,
            parts.evaluated,
            parts.normalise,
            parts.precision,
            ranks.consensus,
            parts.data.rule,
        )
        with ranks.consensus.together():
            check_select(config, parts.data)
        self.engine = MethodEngine(config, parts, self.evaluator)
        self.forecast = Forecast(config, parts)
        ranks.where.log_file = parts.folder.path / "logs" / f"rank{ranks.consensus.rank}.log"

    def run(self, resume: str, overrides: Collection[str]) -> dict[str, Any]:
        """Train to the end and return the content of results.json."""
        folder, total = self.parts.folder, self.parts.layout.total_steps
        self.found = resume_run(
            self.config,
            self.at,
            folder,
            self.consensus,
            resume=resume,
            overrides=overrides,
            total_steps=total,
            held=self.held,
        )
        if self.found.finished is not None:
            if self.leads:
                print(f"{folder.path}: finished already, after {self.found.step} steps")
            return self.found.finished
        self.recorder, self.keeper = assemble.open_records(
            self.config, self.parts, self.ranks, self.held
        )
        self.telemetry, self.meter = self.recorder.telemetry, self.recorder.meter
        self.work = self.parts.work()
        self.is_first_step = True
        try:
            self.introduce(overrides)
            for number in range(self.first_epoch(), self.parts.layout.epochs):
                self.before_epoch(number)
                while self.at.step < self.epoch.end:
                    with told("the first step", aloud=self.is_first_step and self.leads):
                        self.step()
                self.after_epoch()
                if self.at.step >= total:
                    break
            return self.finish()
        except InterruptedRun:
            self.keeper.status = "interrupted"
            raise
        except NonFiniteError as error:
            # All ranks see the reduced gradients, so all of them come here.
            first = self.parts.game.verdicts.first(error)
            step = self.at.step if first.step is None else first.step
            text = f"step {step}: {first}{origin(self.consensus.gather(first.here))}"
            self.found.stop_or_roll_back(text, step, self.config.faults, self.consensus)
        finally:
            self.keeper.close()

    def introduce(self, overrides: Collection[str]) -> None:
        """Log the plan and the step to continue from; record them for a new run."""
        config, parts, at = self.config, self.parts, self.at
        self.telemetry.state("starting", step=at.step, epoch=at.epoch)
        outline = assemble.outline(parts.data, parts.shape)
        facts = assemble.facts(config, outline, parts.networks, parts.method, self.ranks.device)
        facts["started by"] = self.ranks.started_by
        doubts = [parts.data.rule.doubt, too_small(config, parts.data)]
        for line in [*self.found.warnings(), *filter(None, doubts)]:
            log.warning("%s", line)
        for line in plan.describe(config, parts.layout, facts):
            log.info("%s", line)
        if self.found.changes:
            # Save before writing config.yaml, so that a crash in between can be retried.
            self.keeper.begin_to_save()
            self.keeper.wait()
        with self.consensus.on_rank_zero() as leader:
            if leader and overrides:
                parts.folder.write_config(config)
        if self.found.step is None:
            self.engine.load_weights()
        self.forecast.announce(parts.layout.total_steps)
        if at.step:
            log.info("continuing %s after step %d", config.name, at.step)
        else:
            dashboard.introduce(
                self.telemetry, config, parts.data, list(parts.networks), facts, parts.layout.W
            )
            with self.consensus.together():
                tensorboard.show_samples(self.telemetry, parts.data.train)
        self.meter.start()

    def first_epoch(self) -> int:
        """Return the epoch to enter first; after a stop inside its evaluation it has no steps."""
        at, layout = self.at, self.parts.layout
        if at.step >= layout.total_steps and at.epoch < layout.epochs:
            # Cut off by max_steps: what comes before the steps of the next epoch is not due.
            return (at.step - 1) // layout.steps_per_epoch
        return at.epoch

    def before_epoch(self, number: int) -> None:
        """Begin the epoch, and start to load its data."""
        config, parts, at = self.config, self.parts, self.at
        self.epoch = epoch = plan.epoch(config, parts.layout, number)
        if parts.method.facts.fixed_g and epoch.playing:
            for g in parts.game.gs:
                g.fix()
        if epoch.playing:
            # A method's turn is not done by halves: a run that stops in it is saved as before it.
            changes = self.leads and self.engine.may_change(at, number)
            before = checkpoint.copied(at.state()) if changes else None
            with self.keeper.interruptible(state=before):
                if self.engine.begin_epoch(at, number):
                    self.meter.start()
        self.meter.flops_per_step = self.work.of(epoch)
        self.batches = parts.loader.on_device(self.ranks.device, number, at.step - epoch.begin)

    def step(self) -> None:
        """Take one step, unless a rank was asked to stop or has met a fault."""
        self.ranks.where.step = self.at.step
        # A damaged batch is a fault, which go_on raises on all ranks.
        batches, damage = next(self.batches)
        self.keeper.go_on(damage)
        if self.at.step in self.found.left_out:
            log.warning("step %d failed twice and is left out", self.at.step)
            self.at.step += 1
            return
        epoch, game, step = self.epoch, self.parts.game, self.at.step
        game.set_learning_rate(plan.rate_of_step(self.config, self.parts.layout, step))
        if epoch.playing:
            metrics = game.step(batches, step, self.at.radii)
            with undisturbed():  # a step is taken whole
                self.parts.method.after_step(step - game.first_step, self.engine)
        else:
            metrics = game.pretrain(batches, step, train_f=epoch.train_f, train_g=epoch.train_g)
        self.at.step += 1
        if self.is_first_step or self.recorder.is_due(self.at.step):
            game.verdicts.settle()  # a faulty step has no record
        if self.is_first_step:
            self.is_first_step = False
            set_time_out(self.consensus, self.config.faults.step_minutes)
        skipped = [player.name for player in self.parts.players.values() if player.skipped]
        self.recorder.step(self.at.step, epoch.number, metrics, self.at.constants, skipped)

    def after_epoch(self) -> None:
        """Evaluate where that is due, and save a new best and the last step."""
        at, parts, number = self.at, self.parts, self.epoch.number
        parts.game.verdicts.settle()
        done = at.step >= parts.layout.total_steps
        due = (number + 1) % self.config.evaluate.every_epochs == 0
        # Not what max_steps adds: a run that goes on has the best of one that was never cut off.
        regular = at.step % parts.layout.steps_per_epoch == 0 and (
            due or number + 1 == parts.layout.epochs
        )
        improved = False
        if done or regular:
            self.telemetry.state("evaluating", step=at.step, epoch=number)
            weights = {name: player.modules for name, player in parts.players.items()}
            check_equal_weights(weights, self.consensus, self.ranks.device, at.step)
            with self.keeper.interruptible(), self.forecast.evaluating():
                figures = evaluate_splits(self.evaluator, parts.data.monitored, at.radii)
            tensorboard.show(self.telemetry, at.step, number, figures)
            for split, found in figures.items():
                for line in groups.lines(split, found):
                    log.info("%s", line)
            dashboard.show_weights(
                self.telemetry, at.step, parts.networks, number + 1, parts.layout.epochs
            )
            if self.epoch.playing:
                self.recorder.watch.evaluated(at.step, figures)
            # A checkpoint from pretraining cannot be the best one.
            if regular and self.epoch.playing:
                improved = at.note(results.chosen_figure(self.config, figures))
            elif done:
                at.cut_off = at.step
            self.meter.start()
        at.epoch = at.step // parts.layout.steps_per_epoch
        if improved or done:
            self.keeper.begin_to_save()

    def finish(self) -> dict[str, Any]:
        """Evaluate the last and the best checkpoint on test data, and write results.json."""
        parts, at, telemetry = self.parts, self.at, self.telemetry
        self.keeper.wait()
        if self.config.evaluate.final == "none":
            log.info("finished after %d steps; not tested (evaluate.final none)", at.step)
            self.keeper.status = "finished"
            return {}
        self.forecast.tell(1 if at.best_step == at.step else 2)
        telemetry.state("evaluating", step=at.step, epoch=at.epoch)
        with self.keeper.interruptible(save=False):
            final = test_and_record(self.config, parts, self.evaluator, telemetry)
        self.keeper.status = "finished"
        return final
