"""Train through SLURM: make the batch script, submit it, print the job.

The job trains the run NAME. Ahead of its time limit, and when it is preempted, the run saves and
the job queues again, until the run is finished. What follows '--' goes to sbatch.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.system.files import write_synced
from launch.commands.common import given_flags
from launch.commands.several_nodes import add_run, ranks_per_node, resolve_run
from launch.record.command_line import CommandLine, write_command_line
from launch.record.runs import refuse_if_active
from launch.slurm.sbatch import check_words, env_file, render, safe_path, submit
from rebias_dist.config.files import differences, to_yaml
from rebias_dist.config.schema import Config
from rebias_dist.errors import EXIT_FINISHED, ConfigError
from rebias_dist.runs.run_folder import RunFolder, fresh_name, refuse_changes

EXAMPLES = """
rebias-launch slurm imagenet9/rebias_n512 --nodes 4 --gpus-per-node 8 --time 12:00:00
rebias-launch slurm my.yaml --by srun --gpus-per-node 8 --dry-run
rebias-launch slurm biased_mnist/demo --cpu --ranks-per-node 4 -- --mem=8G --exclude=node7
"""

_SBATCH_VALUE = re.compile(r"[A-Za-z0-9_.:,+-]{1,200}")
_TEXTS = ("time", "partition", "account", "qos", "constraint")
_SHORTEST = 60  # seconds that a job must have before its warning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``slurm``."""
    add_run(parser)
    parser.add_argument(
        "--by",
        choices=("torchrun", "srun"),
        default="torchrun",
        help="one torchrun for each node, or one task of srun for each rank [torchrun]",
    )
    parser.add_argument("--time", metavar="LIMIT", help="as for sbatch, such as 2-00:00:00")
    for name in _TEXTS[1:]:
        parser.add_argument(f"--{name}", metavar="NAME", help="as for sbatch")
    parser.add_argument(
        "--warning",
        type=int,
        default=120,
        metavar="SECONDS",
        help="time before the limit at which the run is told to save [120]",
    )
    parser.add_argument(
        "--env",
        type=lambda text: Path(text).absolute(),
        metavar="FILE",
        help="file that a job reads first [the env.sh that comes with launch]",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script and stop")


def run(arguments: argparse.Namespace) -> int:
    """Submit a run."""
    config = _resolve(arguments)
    folder = Path(config.runs_dir) / str(config.name)
    _check_run(config, folder, arguments.resume_override)
    script = _script(arguments, config, folder)
    rest = check_words(arguments.rest)
    if arguments.dry_run:
        print(script, end="")
        return EXIT_FINISHED
    launcher, logs = folder / "launcher", folder / "logs"
    is_new = not folder.exists()
    try:
        launcher.mkdir(parents=True, exist_ok=True)
        logs.mkdir(exist_ok=True)
        # The job trains from this copy, because the given file may change while the job queues.
        write_synced(launcher / "config.yaml", to_yaml(config).encode())
        write_synced(launcher / "job.sbatch", script.encode())
    except OSError as error:
        raise ConfigError(f"runs_dir: {folder} cannot be written: {error.strerror}") from None
    try:
        job = submit([*rest, str(launcher / "job.sbatch")])
    except ConfigError:  # there is no job
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    options = [*given_flags(arguments), f"--name={config.name}", f"--runs-dir={config.runs_dir}"]
    write_command_line(folder, CommandLine("slurm", arguments.config, options, rest, job=job))
    print(f"submitted job {job}, run {config.name}; its output goes to {logs}")
    return EXIT_FINISHED


def _resolve(arguments: argparse.Namespace) -> Config:
    """Return the configuration of the job, with a name and an absolute folder."""
    if arguments.warning < 1:
        raise ConfigError(f"--warning: {arguments.warning} is too few; use 1 or more")
    config = resolve_run(arguments, "slurm")
    runs_dir = safe_path(Path(config.runs_dir), "runs_dir")
    name = config.name or fresh_name(config)
    return config.model_copy(update={"name": name, "runs_dir": str(runs_dir)})


def _check_run(config: Config, folder: Path, overrides: Sequence[str]) -> None:
    """Refuse a run that has another configuration, or that a process or a job works on."""
    existing = RunFolder(folder)
    if existing.config_file.exists():
        changed = differences(existing.read_config(own_method=True).identity(), config.identity())
        refuse_changes(folder, {line.partition(": ")[0]: line for line in changed}, overrides)
    refuse_if_active(folder)


def _script(arguments: argparse.Namespace, config: Config, folder: Path) -> str:
    per_node = ranks_per_node(arguments)
    given = {name: getattr(arguments, name) for name in _TEXTS}
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if not _SBATCH_VALUE.fullmatch(value):
            raise ConfigError(f"--{name}: {value!r} is not a value for sbatch")
    seconds = _seconds(arguments.time)
    if seconds is not None and seconds < arguments.warning + _SHORTEST:
        raise ConfigError(
            f"--time: {arguments.time} leaves no time to train before the warning "
            f"({arguments.warning} s ahead of the end); use a longer one"
        )
    tasks = per_node if arguments.by == "srun" else 1
    if not arguments.cpu:
        options["gpus-per-node"] = str(per_node)
    if arguments.cpus_per_rank is not None:
        options["cpus-per-task"] = str(arguments.cpus_per_rank * per_node // tasks)
    elif arguments.cpu and tasks == 1:
        options["cpus-per-task"] = str(per_node)
    granted = "${SLURM_GPUS_ON_NODE:?SLURM has granted no GPUs}"
    overrides = "".join(f" --resume-override={key}" for key in arguments.resume_override)
    return render(
        "job.sbatch",
        TRAIN=render(
            f"{arguments.by}.sh",
            RANKS=str(per_node) if arguments.cpu else granted,
            OVERRIDES=overrides,
        ),
        NAME=str(config.name),
        NODES=str(arguments.nodes),
        TASKS=str(tasks),
        RESOURCES="\n".join(f"#SBATCH --{name}={value}" for name, value in options.items()),
        WARNING=str(arguments.warning),
        RUN=str(folder),
        LOGS=str(folder / "logs"),
        PYTHON=str(safe_path(Path(sys.executable), "the interpreter", resolve=False)),
        ENV=str(safe_path(env_file(arguments.env), "--env")),
    )


def _seconds(limit: str | None) -> int | None:
    """Return a time limit in seconds: minutes, [hours:]minutes:seconds, or days-hours[:…]."""
    if limit is None:
        return None
    if not re.fullmatch(r"\d{1,6}(:\d{1,2}){0,2}|\d{1,4}-\d{1,2}(:\d{1,2}){0,2}", limit):
        raise ConfigError(
            f"--time: {limit!r} is not a time limit; use minutes, hours:minutes:seconds or "
            "days-hours:minutes:seconds"
        )
    days, dash, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash:  # a clock without days begins with the minutes, unless it has three parts
        parts = [0, *parts] if len(parts) < 3 else parts
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
