"""Train on this machine under a supervisor.

Each attempt is a fresh torchrun that goes on from the newest checkpoint. A failure, a killed or
stopped process and a hang lead to a restart; Ctrl-C, SIGTERM and SIGUSR2 let the run save and
leave, a second Ctrl-C kills it. No process is left behind, however the launcher itself ends, and
no port is open to other machines. What follows '--' is handed to the training, for example
'-- --optimizer.lr 0.01'.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

from launch.local.supervisor import Limits, Supervisor, ownership
from launch.record.folders import refuse_if_active
from launch.record.launch_record import Record, read_record, record_path, write_record
from rebias_dist.commands.train import parse_train
from rebias_dist.config.plan import check_world
from rebias_dist.errors import EXIT_USAGE, ConfigError
from rebias_dist.runs.run_folder import fresh_name

EXAMPLES = """
rebias-launch local biased_mnist/demo
rebias-launch local biased_mnist/rebias --ranks 2 --name first -- --data.rho 0.997 --seed 3
nohup rebias-launch local my.yaml --name long > /dev/null 2>&1 &
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``local``."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file or a shipped configuration")
    parser.add_argument(
        "--ranks",
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="processes [one for each GPU; 1 without]",
    )
    parser.add_argument("--name", help="name of the run [its method and the time]")
    parser.add_argument("--runs-dir", metavar="DIR", help="folder of the runs [runs]")
    parser.add_argument(
        "--max-restarts", type=int, default=100, metavar="N", help="restarts in all [100]"
    )
    parser.add_argument(
        "--hang-timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="without a sign of life, after which all is killed and started again; must exceed "
        "the longest step, evaluation and measuring of radii [1800]",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="to save and leave in, when asked to [120]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Supervise a run."""
    for name in ("max_restarts", "hang_timeout", "grace"):
        if not getattr(arguments, name) >= 0:
            raise ConfigError(
                f"--{name.replace('_', '-')}: {getattr(arguments, name)} is no limit; use 0 or more"
            )
    training = [f"--config={arguments.config}", *arguments.rest]
    training += [] if arguments.runs_dir is None else [f"--runs-dir={arguments.runs_dir}"]
    training += [] if arguments.name is None else [f"--name={arguments.name}"]
    # The trainer's own check of the command line, before any process is started.
    request = parse_train(training, program="rebias-launch local")
    config = request.config
    most = config.global_batch // config.b
    ranks = arguments.ranks
    if ranks is None:
        ranks = 1 if config.device == "cpu" else min(_gpus(), most)
    if ranks < 1:
        raise ConfigError(f"--ranks: {ranks} is too few; use 1 or more")
    check_world(config, ranks)
    name = config.name or fresh_name(config)
    folder = Path(config.runs_dir) / name
    options = [f"--ranks={ranks}", f"--name={name}", f"--runs-dir={config.runs_dir}"]
    options += [f"--max-restarts={arguments.max_restarts}", f"--grace={arguments.grace:g}"]
    options += [f"--hang-timeout={arguments.hang_timeout:g}"]
    limits = Limits(
        max_restarts=arguments.max_restarts,
        # The run itself gives up one attempt earlier, if it gets so far, and says where it fails.
        fruitless=config.faults.restarts + 1,
        hang_timeout=arguments.hang_timeout,
        grace=arguments.grace,
    )
    rest = [*arguments.rest, *([] if request.resume == "auto" else ["--resume=auto"])]
    # Processes of this machine are told by their locks, which those that have just been killed
    # may hold for another moment.
    refuse_if_active(folder, here=False)
    is_new = not folder.exists()
    with ownership(folder):
        earlier = read_record(folder)
        write_record(folder, Record("local", arguments.config, options, rest))
        print(f"rebias-launch: {name}: {ranks} ranks; logs in {folder / 'logs'}", flush=True)
        code = Supervisor(folder, ranks, [*training, f"--name={name}"], limits).run()
        # A refused launch leaves nothing behind, and does not spoil how a run is resumed.
        if code == EXIT_USAGE and earlier is not None:
            write_record(folder, earlier)
        elif code == EXIT_USAGE and is_new and not (folder / "config.yaml").exists():
            shutil.rmtree(folder, ignore_errors=True)
        elif code == EXIT_USAGE and not is_new:
            record_path(folder).unlink(missing_ok=True)
    return code


def _gpus() -> int:
    """Return how many GPUs this process may use, at least 1, without waiting for torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([gpu for gpu in visible.split(",") if gpu.strip()]))
    return max(1, sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in os.listdir("/dev")))
