"""Train on this machine under a supervisor.

Each attempt is a fresh torchrun that goes on from the newest checkpoint. A failure, a killed or
stopped process and a hang lead to a restart. On Ctrl-C, SIGTERM or SIGUSR2 the run saves and
leaves; a second Ctrl-C kills it. No process is left behind, however the launcher itself ends, and
no port is open to other machines. What follows '--' goes to the training, for example
'-- --optimizer.lr 0.01'.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from launch.commands.common import add_new_run, given_flags
from launch.local.supervisor import Limits, Supervisor, ownership
from launch.record.command_line import (
    CommandLine,
    command_line_path,
    read_command_line,
    write_command_line,
)
from launch.record.runs import refuse_if_active
from rebias_dist.commands.train import parse_train
from rebias_dist.config.plan import check_world
from rebias_dist.errors import EXIT_USAGE, ConfigError
from rebias_dist.ranks.placement import visible_gpus
from rebias_dist.runs.run_folder import fresh_name

EXAMPLES = """
rebias-launch local biased_mnist/demo
rebias-launch local biased_mnist/rebias --ranks 2 --name first -- --data.rho 0.997 --seed 3
nohup rebias-launch local my.yaml --name long > /dev/null 2>&1 &
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``local``."""
    add_new_run(parser)
    parser.add_argument(
        "--ranks",
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="processes [one for each GPU, or 1]",
    )
    parser.add_argument(
        "--max-restarts", type=int, default=100, metavar="N", help="restarts in all [100]"
    )
    parser.add_argument(
        "--hang-timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="time without a sign of life after which the run is killed and restarted; must "
        "exceed the longest step, evaluation and measurement of radii [1800]",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="time to save and leave in, when asked to [120]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Supervise a run."""
    for name in ("max_restarts", "hang_timeout", "grace"):
        if not getattr(arguments, name) >= 0:
            raise ConfigError(
                f"--{name.replace('_', '-')}: {getattr(arguments, name)} is negative; use 0 or more"
            )
    training = [f"--config={arguments.config}", *arguments.rest]
    training += [] if arguments.runs_dir is None else [f"--runs-dir={arguments.runs_dir}"]
    training += [] if arguments.name is None else [f"--name={arguments.name}"]
    # The trainer's parser checks the command line before any process is started.
    request = parse_train(training, program="rebias-launch local")
    if request.dry_run:
        raise ConfigError(
            "--dry-run: a supervisor is not needed for a plan; use rebias-train with --dry-run"
        )
    config = request.config
    most = config.global_batch // config.b
    ranks = arguments.ranks
    if ranks is None:
        ranks = 1 if config.device == "cpu" else max(1, min(len(visible_gpus()), most))
    if ranks < 1:
        raise ConfigError(f"--ranks: {ranks} is too few; use 1 or more")
    check_world(config, ranks)
    name = config.name or fresh_name(config)
    folder = Path(config.runs_dir) / name
    arguments.ranks = ranks
    options = [*given_flags(arguments), f"--name={name}", f"--runs-dir={config.runs_dir}"]
    limits = Limits(
        max_restarts=arguments.max_restarts,
        # The run itself gives up one attempt earlier, and says where it fails, if it gets so far.
        fruitless=config.faults.restarts + 1,
        hang_timeout=arguments.hang_timeout,
        grace=arguments.grace,
    )
    rest = [*arguments.rest, *([] if request.resume == "auto" else ["--resume=auto"])]
    # For processes of this machine the locks decide: a process that was just killed may still be
    # listed as active for a moment.
    refuse_if_active(folder, here=False)
    is_new = not folder.exists()
    with ownership(folder):
        earlier = read_command_line(folder)
        write_command_line(folder, CommandLine("local", arguments.config, options, rest))
        print(f"rebias-launch: {name}: {ranks} ranks; logs in {folder / 'logs'}", flush=True)
        code = Supervisor(folder, ranks, [*training, f"--name={name}"], limits).run()
        # A refused launch leaves nothing behind, and does not change how the run is resumed.
        if code == EXIT_USAGE and earlier is not None:
            write_command_line(folder, earlier)
        elif code == EXIT_USAGE and is_new and not (folder / "config.yaml").exists():
            shutil.rmtree(folder, ignore_errors=True)
        elif code == EXIT_USAGE and not is_new:
            command_line_path(folder).unlink(missing_ok=True)
    return code
