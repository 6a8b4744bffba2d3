"""Errors that end a run with one line and a meaning, and the exit codes that carry it.

The codes are the same for ``python -m rebias_dist.train``, srun and the launcher:
0 finished, 1 failed (worth a retry), 2 wrong use or configuration, 3 give up,
75 interrupted after a save.
"""

from collections.abc import Sequence

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_GIVE_UP = 3
EXIT_INTERRUPTED = 75


class RebiasError(Exception):
    """An error that is shown as one line: what is wrong, its value, and the cure."""

    exit_code = EXIT_FAILED


class ConfigError(RebiasError):
    """Wrong use: the configuration, the command line or what they point at does not fit."""

    exit_code = EXIT_USAGE


class PlacementError(ConfigError):
    """A rank cannot be where it was started; it may be alone in that, so each one says so."""


class DataError(RebiasError):
    """The data are damaged or are not what their manifest says; a retry cannot help."""

    exit_code = EXIT_GIVE_UP


class NonFiniteError(RebiasError):
    """A loss or a gradient became NaN or infinite; a retry would repeat it."""

    exit_code = EXIT_GIVE_UP
    here: Sequence[str] = ()
    """What is not finite already for this rank's own samples."""


class CrashLoopError(RebiasError):
    """Restarts do not bring the run any further."""

    exit_code = EXIT_GIVE_UP


class RankError(RebiasError):
    """An unexpected fault of this rank, or the loss of another; each rank says its own."""


class RolledBack(RebiasError):  # noqa: N818 - an outcome, not a mistake
    """The run goes back to its newest checkpoint and on from there, in the same processes."""


class InterruptedRun(RebiasError):  # noqa: N818 - an outcome, not a mistake
    """A signal asked the run to stop; its state was saved before this was raised."""

    exit_code = EXIT_INTERRUPTED
