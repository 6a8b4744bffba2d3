"""Train f and g against each other: the whole run, from top to bottom.

torchrun --nproc_per_node=2 -m rebias_dist.train --config biased_mnist/demo
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rebias_dist.commands.parser import leave_at_once, parse_train, run_cli
from rebias_dist.config.files import DEFAULT_CONFIG, config_comment, flat
from rebias_dist.config.schema import Config
from rebias_dist.errors import (
    DataError,
    InterruptedRun,
    NonFiniteError,
    RankError,
    RebiasError,
    RolledBack,
)
from rebias_dist.ranks.placement import is_rank_zero

# torch is imported where it is first needed: --help and usage errors do not wait for it.
if TYPE_CHECKING:
    import torch

    from rebias_dist.data import MicroBatch
    from rebias_dist.ranks.consensus import Consensus
    from rebias_dist.ranks.faults import Whereabouts
    from rebias_dist.ranks.signals import StopRequest
    from rebias_dist.telemetry.writers import Status

log = logging.getLogger("rebias_dist")


def main(config: Config, resume: str = "auto", overrides: Collection[str] = ()) -> dict[str, Any]:
    """Train as a configuration says, on the ranks of the environment or on this process alone.

    Args:
        config: a resolved configuration; without a name the run gets a fresh one.
        resume: continue an existing run of this name: ``auto``, ``never`` or ``must``.
        overrides: keys (``optimizer.lr``, ``manifest.train``) in which a resumed run may differ
            from what it was.

    Returns:
        The content of results.json: the test figures of the last and the best checkpoint.

    Raises:
        RebiasError: one of the expected errors, alike on all ranks; or a RankError, which is
            this rank's alone.
    """
    from rebias_dist import assemble
    from rebias_dist.config.plan import check_world
    from rebias_dist.ranks.faults import Whereabouts
    from rebias_dist.ranks.process_group import choose_device, process_group, resolve_placement
    from rebias_dist.ranks.signals import stop_requests
    from rebias_dist.runs.run_folder import fresh_name

    placement = resolve_placement()
    check_world(config, placement.world_size)
    device = choose_device(config.device, placement.local_rank, placement.bound)
    where = Whereabouts(placement.rank)
    settings = flat(config.model_dump())
    try:
        with (
            process_group(placement, device, config.faults.start_minutes, settings) as consensus,
            stop_requests() as stop,
        ):
            where.meet(consensus)
            name = consensus.broadcast(config.name or fresh_name(config))
            data = assemble.as_recorded(config.data)
            config = config.model_copy(update={"name": name, "data": data})
            while True:
                try:
                    with ExitStack() as held:
                        return _train(
                            *(config, resume, overrides, device, consensus, stop, where, held),
                            placement.origin,
                        )
                except RolledBack:
                    resume = "auto"
    except RebiasError:
        raise
    except Exception as error:
        raise where.fault(error) from None


def _train(
    config: Config,
    resume: str,
    overrides: Collection[str],
    device: torch.device,
    consensus: Consensus,
    stop: StopRequest,
    where: Whereabouts,
    held: ExitStack,
    started_by: str,
) -> dict[str, Any]:
    from rebias_dist import assemble, methods
    from rebias_dist.config import plan
    from rebias_dist.evaluation.splits import evaluate_checkpoints, evaluate_splits
    from rebias_dist.ranks.faults import origin
    from rebias_dist.ranks.process_group import set_time_out
    from rebias_dist.runs import checkpoint, results
    from rebias_dist.runs.resumption import resume_run
    from rebias_dist.runs.run_folder import RunFolder
    from rebias_dist.runs.saver import Saver
    from rebias_dist.runs.snapshot import Snapshot
    from rebias_dist.step import radii as radius
    from rebias_dist.step.precision import Precision, make_deterministic
    from rebias_dist.telemetry import dashboard, flops
    from rebias_dist.telemetry.meter import Meter, describe_speed
    from rebias_dist.telemetry.profiling import profiled
    from rebias_dist.telemetry.watch import Watch
    from rebias_dist.telemetry.writers import Telemetry

    if config.deterministic:
        make_deterministic()
    precision = Precision(config.precision, device)
    method = methods.build(config.method)

    # -------------------------------------------------------------------- data
    # Rank 0 makes the shards if need be, and checks them; then all open the same ones.
    root = ""
    with consensus.on_rank_zero() as leader:
        if leader:
            root = str(assemble.data_root(config))
            assemble.open_data(config, Path(root)).check()
    root = consensus.broadcast(root)
    with consensus.together():
        data = assemble.open_data(config, Path(root))
        shape = assemble.sample_shape(config, data)
        layout = plan.derive(config, consensus.world_size, len(data.train))
    classes = len(data.classes)

    # -------------------------------------------------------------------- networks and the game
    with consensus.together():
        networks = assemble.build_networks(config, classes, precision)
        assemble.check_networks(config, networks, shape, precision)
    players = assemble.build_players(config, method, networks, shape, classes, precision)
    normalise = assemble.Normalise(data.train, precision)
    game = assemble.build_game(config, method, players, normalise)
    loader = assemble.build_loader(config, data.train, consensus.rank, consensus.world_size)

    # -------------------------------------------------------------------- run folder, resumption
    assert config.name is not None
    folder = RunFolder(Path(config.runs_dir) / config.name)
    run = Snapshot(players, data, shape, config, layout.steps_per_epoch)
    where.log_file = folder.path / "logs" / f"rank{consensus.rank}.log"
    found_run = resume_run(
        config,
        run,
        folder,
        consensus,
        resume=resume,
        overrides=overrides,
        total_steps=layout.total_steps,
        held=held,
    )
    if found_run.finished is not None:
        if consensus.rank == 0:
            print(f"{folder.path}: finished already, after {found_run.step} steps")
        return found_run.finished

    with consensus.together():
        telemetry = Telemetry(
            folder.path,
            rank=consensus.rank,
            total_steps=layout.total_steps,
            global_batch=layout.N,
            start_step=run.step,
            identity={
                "name": config.name,
                "method": config.method.name,
                "world_size": consensus.world_size,
                "pid": os.getpid(),
                "host": platform.node(),
            },
        )
    watch = Watch(config, classes, telemetry.warning)
    trace_step = held.enter_context(
        profiled(config.log.profile, folder.path / "profile", consensus.rank)
    )
    status: Status = "failed"
    saver = held.enter_context(closing(Saver(folder.checkpoints, config.checkpoint.keep)))
    saved_step, saved_at = run.step, time.monotonic()

    def begin_to_save() -> None:
        """Save on rank 0, with the records up to here; it may go on beside the training."""
        nonlocal saved_step, saved_at
        if consensus.rank == 0:
            telemetry.flush()
            stall = saver.begin(run.step, run.state(), run.best_step)
            telemetry.scalars(run.step, {"checkpoint/stall_seconds": stall}, epoch=run.epoch)
        saved_step, saved_at = run.step, time.monotonic()

    def save() -> None:
        """Save, and return when the checkpoint is on the disk; collective."""
        begin_to_save()
        saver.wait()
        consensus.agree(saver.fault())

    def asked_to_leave(fault: RebiasError | None = None) -> bool:
        """Agree with the other ranks whether to go on; collective."""
        return consensus.agree(fault or telemetry.fault or saver.fault(), stop=bool(stop))

    def leave_if_asked(fault: RebiasError | None = None) -> None:
        """Save and leave if any rank was asked to; collective."""
        if asked_to_leave(fault):
            save()
            leave()

    def leave() -> NoReturn:
        nonlocal status
        status = "interrupted"
        raise InterruptedRun(
            f"interrupted; saved at step {run.step}, and the same command "
            f"with --name {config.name} goes on from there"
        )

    try:
        telemetry.state("starting", step=run.step, epoch=run.epoch)
        for line in found_run.damaged:
            log.warning(
                "passed over a damaged checkpoint: %s; its folder is %s… now",
                *(line, checkpoint.DAMAGED),
            )
        facts = assemble.facts(config, data, networks, method, device)
        for line in plan.describe(config, layout, {**facts, "started by": started_by}):
            log.info("%s", line)
        if found_run.changes:
            for line in found_run.changes.values():
                log.warning("changed in mid-run, as --resume-override says: %s", line)
            # The checkpoint first: where its configuration is not yet the folder's, the same
            # command does the same again.
            save()
        if overrides:
            with consensus.on_rank_zero() as leader:
                if leader:
                    folder.write_config(config)
        if run.step:
            log.info("continuing %s after step %d", config.name, run.step)
        else:
            dashboard.introduce(
                telemetry, config, data, list(networks), facts, consensus.world_size
            )
            with consensus.together():
                results.show_samples(telemetry, data.train)

        meter = Meter(layout.N, consensus.rank, consensus.world_size, precision)
        held.enter_context(meter.running())
        work = flops.Work(method, networks, shape, layout.N)
        text, details = "", ""
        started = False
        for epoch in range(run.epoch, layout.epochs):
            # ---------------------------------------------------------------- before an epoch
            begin = run.step - epoch * layout.steps_per_epoch
            game_epoch = epoch - layout.pretrain_epochs
            playing = game_epoch >= 0
            pretraining = {
                "train_f": epoch < config.method.f_pretrain_epochs,
                "train_g": epoch < config.method.g_pretrain_epochs,
            }
            meter.flops_per_step = work.game() if playing else work.pretraining(**pretraining)
            rate = plan.learning_rate(
                config.optimizer.lr, config.scheduler, game_epoch, config.epochs
            )
            for player in players.values():
                player.set_learning_rate(rate)
            if method.facts.fixed_g and playing:
                for g in game.gs:
                    g.fix()
            if method.uses_radius and playing and run.radii_epoch != epoch:
                if run.radii is None or config.radius.update == "epoch":
                    run.radii = radius.measure(
                        config, game, loader, consensus, epoch=epoch, step=run.step
                    )
                run.radii_epoch = epoch
                meter.start()

            steps = _fetch(loader.epoch(epoch, begin), device)
            end = min((epoch + 1) * layout.steps_per_epoch, layout.total_steps)
            while run.step < end:
                # ------------------------------------------------------------ data, or the end
                batches, damage = next(steps)
                where.step = run.step
                late = time.monotonic() - saved_at > 60 * config.checkpoint.every_minutes
                every = config.checkpoint.every_steps or layout.total_steps
                # Late by rank 0's own clock; a fault of its disk comes up in the agreement.
                if run.step > saved_step and (late or run.step % every == 0):
                    begin_to_save()
                leave_if_asked(damage)
                if run.step in found_run.left_out:
                    log.warning("step %d failed twice and is left out", run.step)
                    run.step += 1
                    continue

                # ------------------------------------------------------------ one step
                if playing:
                    found = game.step(batches, run.step, run.radii)
                else:
                    found = game.pretrain(batches, run.step, **pretraining)
                run.step += 1
                meter.step()
                trace_step()
                if not started:
                    started = True
                    set_time_out(consensus, config.faults.step_minutes)
                for player in players.values():
                    if player.skipped:
                        log.warning(
                            "step %d: the gradient of %s is not finite, its update was skipped",
                            *(run.step, player.name),
                        )

                # ------------------------------------------------------------ what it found
                if run.step % config.log.every_steps == 0 or run.step == layout.total_steps:
                    reading = meter.read()
                    values = found.reduce(layout.N, reading.by_rank)
                    values |= run.constants() | reading.scalars()
                    telemetry.scalars(run.step, values, epoch=epoch)
                    watch.step(run.step, values)
                    text = " ".join(f"{n} {values[n]:.4f}" for n in values if n.endswith("/loss"))
                    details = describe_speed(values)
                telemetry.progress(run.step, epoch=epoch, text=text, details=details)
                telemetry.state("running", step=run.step, epoch=epoch)

            # ---------------------------------------------------------------- after an epoch
            done = run.step >= layout.total_steps
            if done or (epoch + 1) % config.evaluate.every_epochs == 0:
                telemetry.state("evaluating", step=run.step, epoch=epoch)
                figures = evaluate_splits(
                    networks,
                    config,
                    data.monitored,
                    normalise,
                    precision,
                    run.radii,
                    consensus,
                    before_each=leave_if_asked,
                )
                results.show(telemetry, run.step, epoch, figures)
                dashboard.show_weights(telemetry, run.step, networks, epoch + 1, layout.epochs)
                if playing:
                    watch.evaluated(run.step, figures)
                # A network that has not played yet is no candidate.
                improved = (playing or done) and run.note(results.chosen_figure(config, figures))
                run.epoch = run.step // layout.steps_per_epoch
                if improved or done:
                    begin_to_save()
                meter.start()
            run.epoch = run.step // layout.steps_per_epoch
            if done:
                break

        # -------------------------------------------------------------------- test figures
        saver.wait()
        consensus.agree(saver.fault())
        telemetry.state("evaluating", step=run.step, epoch=run.epoch)

        def leave_unsaved_if_asked() -> None:
            # All is saved, and the networks may by now be those of the best checkpoint.
            if asked_to_leave():
                leave()

        tested, lost = evaluate_checkpoints(
            run,
            folder.checkpoints,
            networks,
            normalise,
            precision,
            consensus,
            before_each=leave_unsaved_if_asked,
        )
        for choice, why in lost.items():
            log.warning("the %s checkpoint is damaged and has no figures: %s", choice, why)
        final = results.assemble(config, data.classes, tested, run.step, lost)
        with consensus.on_rank_zero() as leader:
            if leader:
                results.write(folder.results_file, final)
        results.show_final(telemetry, config, final, run.epoch)
        with consensus.on_rank_zero() as leader:
            if leader:
                dashboard.project(telemetry, config, data, networks, normalise, precision, run.step)
        consensus.agree(telemetry.fault)
        for line in results.closing_text(final, folder.path).splitlines():
            log.info("%s", line)
        status = "finished"
        return final
    except NonFiniteError as error:
        # Raised alike on all ranks: the reduced gradients are.
        text = f"step {run.step}: {error}{origin(consensus.gather(error.here))}"
        if config.faults.non_finite != "rollback":
            raise NonFiniteError(text) from None
        log.warning("%s; rolling back to the newest checkpoint", text)
        with consensus.together():
            if found_run.attempts is not None:
                found_run.attempts.roll_back(run.step, config.faults.non_finite_limit)
        raise RolledBack(text) from None
    finally:
        saver.wait()
        telemetry.state(status, step=run.step, epoch=run.epoch, force=True)
        telemetry.close()


def _fetch(
    batches: Iterator[list[MicroBatch]], device: torch.device
) -> Iterator[tuple[list[MicroBatch], DataError | None]]:
    """Yield each step's micro-batches, or the fault that this rank met and all must hear of."""
    from rebias_dist.phases import phase

    while True:
        with phase("data_wait"):
            try:
                found, fault = [batch.to(device) for batch in next(batches)], None
            except DataError as error:
                found, fault = [], error
        yield found, fault


# ---------------------------------------------------------------------------- command


def cli(
    argv: Sequence[str] | None = None, leaving: Callable[[int], None] = lambda code: None
) -> None:
    """Run ``rebias-train``.

    Args:
        argv: its arguments; None for those of the process.
        leaving: called with the exit code before the process ends at once, without SystemExit.
    """

    def command() -> None:
        request = parse_train(sys.argv[1:] if argv is None else argv)
        if request.dry_run:
            from rebias_dist.commands.dry_run import print_plan

            print_plan(request.config)
            return
        if request.default and is_rank_zero():
            print(f"no --config given, so this is {DEFAULT_CONFIG}:")
            print(config_comment(DEFAULT_CONFIG), flush=True)
        try:
            main(request.config, request.resume, request.overrides)
        except RankError as error:
            leaving(error.exit_code)
            leave_at_once("rebias-train", error)

    run_cli("rebias-train", command)


if __name__ == "__main__":
    cli()
