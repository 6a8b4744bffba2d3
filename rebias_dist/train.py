"""Train f and g against each other: the whole run, from top to bottom.

torchrun --nproc_per_node=2 -m rebias_dist.train --config biased_mnist/demo
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebias_dist.cli import Request, is_rank_zero, parse_train, run_cli
from rebias_dist.config import Config
from rebias_dist.config_files import DEFAULT_CONFIG, config_comment, to_yaml
from rebias_dist.errors import DataError, InterruptedRun, RebiasError

# torch is imported where it is first needed: --help and usage errors do not wait for it.
if TYPE_CHECKING:
    import torch

    from rebias_dist.data import MicroBatch
    from rebias_dist.runtime.consensus import Consensus
    from rebias_dist.runtime.meter import Meter
    from rebias_dist.runtime.signals import StopRequest
    from rebias_dist.runtime.telemetry import Status

log = logging.getLogger("rebias_dist")


def main(config: Config, resume: str = "auto") -> dict[str, Any]:
    """Train as a configuration says, on the ranks of the environment or on this process alone.

    Args:
        config: a resolved configuration; without a name the run gets a fresh one.
        resume: continue an existing run of this name: ``auto``, ``never`` or ``must``.

    Returns:
        The content of results.json: the test figures of the last and the best checkpoint.

    Raises:
        RebiasError: one of the expected errors, alike on all ranks.
    """
    from rebias_dist.plan import check_world
    from rebias_dist.runtime.process_group import choose_device, process_group, resolve_placement
    from rebias_dist.runtime.signals import stop_requests

    placement = resolve_placement()
    check_world(config, placement.world_size)
    device = choose_device(config.device, placement.local_rank)
    with (
        ExitStack() as held,
        process_group(placement, device) as consensus,
        stop_requests() as stop,
    ):
        return _train(config, resume, device, consensus, stop, held)


def _train(
    config: Config,
    resume: str,
    device: torch.device,
    consensus: Consensus,
    stop: StopRequest,
    held: ExitStack,
) -> dict[str, Any]:
    from rebias_dist import assemble, methods, plan, results
    from rebias_dist.runtime import checkpoint, radius
    from rebias_dist.runtime.evaluation import evaluate_splits
    from rebias_dist.runtime.meter import Meter
    from rebias_dist.runtime.precision import Precision, make_deterministic
    from rebias_dist.runtime.run_folder import RunFolder, fresh_name, open_run
    from rebias_dist.runtime.snapshot import Snapshot, radii_of
    from rebias_dist.runtime.telemetry import Telemetry

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
    players = assemble.build_players(config, method, networks, shape, classes, precision)
    normalise = assemble.Normalise(data.train, precision)
    game = assemble.build_game(config, method, players, normalise)
    loader = assemble.build_loader(config, data.train, consensus.rank, consensus.world_size)

    # -------------------------------------------------------------------- run folder, resumption
    name = consensus.broadcast(config.name or fresh_name(config))
    config = config.model_copy(
        update={"name": name, "data": assemble.with_absolute_paths(config.data)}
    )
    folder = RunFolder(Path(config.runs_dir) / name)
    run = Snapshot(players, data, config)
    # What is on the disk is for rank 0 to say: another node may still see an earlier state of it.
    state: dict[str, Any] | None = None
    damaged: list[str] = []
    finished: dict[str, Any] | None = None
    with consensus.on_rank_zero() as leader:
        if leader:
            held.enter_context(open_run(config, resume))
            state, damaged = checkpoint.load_newest(folder.checkpoints)
            if state is not None and state["step"] >= layout.total_steps:
                finished = results.read(folder.results_file) if folder.has_results else None
    resumed = consensus.broadcast(None if state is None else state["step"])
    finished = consensus.broadcast(finished)
    if finished is not None:
        if consensus.rank == 0:
            print(f"{folder.path}: finished already, after {resumed} steps")
        return finished
    with consensus.together():
        if resumed is not None:
            run.restore(state or checkpoint.load(folder.checkpoints, resumed))
    state = None

    with consensus.together():
        telemetry = Telemetry(
            folder.path,
            rank=consensus.rank,
            total_steps=layout.total_steps,
            global_batch=layout.N,
            start_step=run.step,
            identity={
                "name": name,
                "method": config.method.name,
                "world_size": consensus.world_size,
                "pid": os.getpid(),
                "host": platform.node(),
            },
        )
    status: Status = "failed"
    last_saved = time.monotonic()

    def save() -> None:
        """Save on rank 0, with the records up to here; collective."""
        nonlocal last_saved
        with consensus.on_rank_zero() as leader:
            if leader:
                telemetry.flush()
                run.save(folder.checkpoints)
        last_saved = time.monotonic()

    def leave_if_asked(fault: RebiasError | None) -> None:
        """Agree with the other ranks whether to go on; collective."""
        if consensus.agree(fault or telemetry.fault, stop=bool(stop)):
            nonlocal status
            save()
            status = "interrupted"
            raise InterruptedRun(
                f"interrupted; saved at step {run.step}, and the same command "
                f"with --name {name} goes on from there"
            )

    try:
        telemetry.state("starting", step=run.step, epoch=run.epoch)
        for line in damaged:
            log.warning("passed over a damaged checkpoint: %s", line)
        facts = assemble.facts(config, data, networks, method, device)
        for line in plan.describe(config, layout, facts):
            log.info("%s", line)
        if run.step:
            log.info("continuing %s after step %d", name, run.step)
        else:
            telemetry.text("config", 0, f"```yaml\n{to_yaml(config)}```")
            with consensus.together():
                results.show_samples(telemetry, data.train)

        meter = Meter(layout.N)
        text = ""
        for epoch in range(run.epoch, layout.epochs):
            # ---------------------------------------------------------------- before an epoch
            begin = run.step - epoch * layout.steps_per_epoch
            game_epoch = epoch - layout.pretrain_epochs
            playing = game_epoch >= 0
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

            steps = _fetch(loader.epoch(epoch, begin), meter)
            end = min((epoch + 1) * layout.steps_per_epoch, layout.total_steps)
            while run.step < end:
                # ------------------------------------------------------------ data, or the end
                batches, damage = next(steps)
                fault: RebiasError | None = damage
                late = time.monotonic() - last_saved > 60 * config.checkpoint.every_minutes
                if late and consensus.rank == 0:
                    # By rank 0's own clock; should it fail, the agreement below tells all.
                    telemetry.flush()
                    fault = fault or run.try_save(folder.checkpoints)
                    last_saved = time.monotonic()
                leave_if_asked(fault)
                batches = [batch.to(device) for batch in batches]

                # ------------------------------------------------------------ one step
                if playing:
                    found = game.step(batches, run.step, run.radii)
                else:
                    found = game.pretrain(
                        batches,
                        run.step,
                        train_f=epoch < config.method.f_pretrain_epochs,
                        train_g=epoch < config.method.g_pretrain_epochs,
                    )
                run.step += 1
                meter.step()

                # ------------------------------------------------------------ what it found
                if run.step % config.log.every_steps == 0 or run.step == layout.total_steps:
                    values = found.reduce(layout.N, consensus.group)
                    values |= run.constants() | meter.read()
                    telemetry.scalars(run.step, values, epoch=epoch)
                    text = " ".join(f"{n} {values[n]:.4f}" for n in values if n.endswith("/loss"))
                telemetry.progress(run.step, epoch=epoch, text=text)
                telemetry.state("running", step=run.step, epoch=epoch)

            # ---------------------------------------------------------------- after an epoch
            done = run.step >= layout.total_steps
            if done or (epoch + 1) % config.evaluate.every_epochs == 0:
                leave_if_asked(None)
                telemetry.state("evaluating", step=run.step, epoch=epoch)
                figures = evaluate_splits(
                    networks, config, data.monitored, normalise, precision, run.radii, consensus
                )
                results.show(telemetry, run.step, epoch, figures)
                # A network that has not played yet is no candidate.
                improved = (playing or done) and run.note(results.chosen_figure(config, figures))
                run.epoch = run.step // layout.steps_per_epoch
                if improved or done:
                    save()
                meter.start()
            run.epoch = run.step // layout.steps_per_epoch
            if done:
                break

        # -------------------------------------------------------------------- test figures
        telemetry.state("evaluating", step=run.step, epoch=run.epoch)
        tested: dict[str, Any] = {}
        for choice in ("last", "best"):
            step = 0
            with consensus.on_rank_zero() as leader:
                if leader:
                    step = checkpoint.choose(folder.checkpoints, choice)
            step = consensus.broadcast(step)
            if choice == "best" and step == tested["last"]["step"]:
                tested["best"] = tested["last"]
                continue
            with consensus.together():
                state = checkpoint.load(folder.checkpoints, step)
                run.restore_networks(state)
            figures = evaluate_splits(
                networks, config, data.tests, normalise, precision, radii_of(state), consensus
            )
            tested[choice] = {"step": step, "splits": figures}
        final = results.assemble(config, data.classes, tested, run.step)
        with consensus.on_rank_zero() as leader:
            if leader:
                results.write(folder.results_file, final)
        results.show_final(telemetry, config, final, run.epoch)
        consensus.agree(telemetry.fault)
        for line in results.closing_text(final, folder.path).splitlines():
            log.info("%s", line)
        status = "finished"
        return final
    finally:
        telemetry.state(status, step=run.step, epoch=run.epoch, force=True)
        telemetry.close()


def _fetch(
    batches: Iterator[list[MicroBatch]], meter: Meter
) -> Iterator[tuple[list[MicroBatch], DataError | None]]:
    """Yield each step's micro-batches, or the fault that this rank met and all must hear of."""
    while True:
        with meter.waiting():
            try:
                found, fault = next(batches), None
            except DataError as error:
                found, fault = [], error
        yield found, fault


# ---------------------------------------------------------------------------- command


def _dry_run(request: Request) -> None:
    """Print the plan; nothing is trained and no process group is joined."""
    import torch

    from rebias_dist import assemble, methods, plan
    from rebias_dist.runtime.precision import Precision
    from rebias_dist.runtime.process_group import resolve_placement

    config = request.config
    placement = resolve_placement()
    plan.check_world(config, placement.world_size)
    if placement.rank != 0:
        return
    data = assemble.open_data(config, assemble.data_root(config))
    layout = plan.derive(config, placement.world_size, len(data.train))
    device = torch.device("cpu")
    networks = assemble.build_networks(
        config, len(data.classes), Precision(config.precision, device)
    )
    facts = assemble.facts(config, data, networks, methods.build(config.method), device)
    print("\n".join(plan.describe(config, layout, facts)))


def cli(argv: Sequence[str] | None = None) -> None:
    """Run ``rebias-train``."""

    def command() -> None:
        request = parse_train(sys.argv[1:] if argv is None else argv)
        if request.dry_run:
            _dry_run(request)
            return
        if request.default and is_rank_zero():
            print(f"no --config given, so this is {DEFAULT_CONFIG}:")
            print(config_comment(DEFAULT_CONFIG), flush=True)
        main(request.config, request.resume)

    run_cli("rebias-train", command)


if __name__ == "__main__":
    cli()
