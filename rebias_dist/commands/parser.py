"""The parser of all console scripts, their one-line errors, exit codes and Ctrl-C."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import argcomplete

from data_shards.system.processes import usable_cores
from data_shards.system.streams import run_command
from rebias_dist.errors import ConfigError, InterruptedRun, PlacementError, RankError, RebiasError
from rebias_dist.ranks.placement import is_rank_zero


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, printed only once even with several ranks.

    It prints texts as they are laid out, and takes no abbreviated flags.
    """

    def __init__(self, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": raw, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit with the code of wrong use."""
        leave(self.prog, ConfigError(message.replace("\n", " ") + " (see --help)"))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; the error of an unknown flag names the nearest known one."""
        if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
            argcomplete.autocomplete(self)
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            flags = [option for option in self._option_string_actions if option.startswith("--")]
            # '--lr' more often means '--optimizer.lr' than a flag with similar letters.
            near = [f for f in flags if f.rpartition(".")[2] == flag.lstrip("-")]
            near = near or difflib.get_close_matches(flag, flags, n=1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            leave(self.prog, ConfigError(f"{flag}: no such argument; {hint}"))
        return known


def leave(program: str, error: RebiasError) -> NoReturn:
    """Print an error's line and exit with its code.

    It is printed on rank 0 alone, unless it is an error of this rank.
    """
    _tell(program, error)
    raise SystemExit(error.exit_code)


def leave_at_once(program: str, error: RebiasError) -> NoReturn:
    """Print and exit like :func:`leave`, without waiting for threads, which may never end."""
    _tell(program, error)
    sys.stdout.flush()
    os._exit(error.exit_code)


def _tell(program: str, error: RebiasError) -> None:
    if is_rank_zero() or isinstance(error, (PlacementError, RankError)):
        kind = "" if isinstance(error, InterruptedRun) else "error: "
        print(f"{program}: {kind}{error}", file=sys.stderr, flush=True)


def set_thread_defaults() -> None:
    """Set what OpenMP reads when torch is imported, unless the user has set it."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # A thread that waits spins for long by default, and so takes the time of those that it
        # waits for, if other programs use the cores too. Results do not depend on it.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # GNU's, less than a millisecond
        os.environ.setdefault("KMP_BLOCKTIME", "1")  # Intel's, in milliseconds
    cores = usable_cores()
    if cores < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def run_cli(program: str, command: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its code; an expected error is printed as one line.

    Args:
        program: name in the error.
        command: returns the exit code, or None for 0.
    """
    _import_from_working_folder()
    raise SystemExit(run_command(program, lambda: _code(program, command)))


def _import_from_working_folder() -> None:
    """Let networks and methods of the user's own be imported from here, as ``python -m`` does.

    The path of a console script begins with the folder of the script instead.
    """
    here = os.getcwd()
    is_safe = getattr(sys.flags, "safe_path", False)  # not in Python 3.10
    if not is_safe and not {"", here} & set(sys.path):
        sys.path.insert(0, here)


def _code(program: str, command: Callable[[], int | None]) -> int:
    try:
        return command() or 0
    except RebiasError as error:
        leave(program, error)
    except KeyboardInterrupt:
        leave(program, RebiasError("interrupted at once; the last checkpoint is intact"))
    except OSError as error:
        # A full disk or a missing permission: the message of the system says it all.
        where = error.filename or "input or output"
        leave(program, RebiasError(f"{where}: {error.strerror or error}"))
