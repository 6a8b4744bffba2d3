"""The errors that end a run with one line, and their exit codes.

The codes are the same for ``python -m rebias_dist.train``, srun and the launcher:
0 finished, 1 failed (a retry may help), 2 wrong use or configuration, 3 give up (a retry cannot
help), 75 interrupted after a save.
"""

from collections.abc import Sequence

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_GIVE_UP = 3
EXIT_INTERRUPTED = 75


class RebiasError(Exception):
    """An error that is shown as one line: what is wrong, the value, and the cure."""

    exit_code = EXIT_FAILED


class ConfigError(RebiasError):
    """Wrong use: an invalid configuration or command line, or one that names missing things."""

    exit_code = EXIT_USAGE


class ArgumentError(ConfigError, ValueError):
    """A function of the Python API was called with a wrong value, perhaps from a configuration."""


class PlacementError(ConfigError):
    """The launch environment is wrong. It may be wrong for one rank, so each rank prints it."""


class DataError(RebiasError):
    """The data are damaged or differ from their manifest; a retry cannot help."""

    exit_code = EXIT_GIVE_UP


class NonFiniteError(RebiasError):
    """A loss or a gradient became NaN or infinite; a retry would repeat it."""

    exit_code = EXIT_GIVE_UP
    step: int | None = None
    """The step in which it was, if that is not the present one."""
    here: Sequence[str] = ()
    """Names of the values that are not finite for this rank's own samples."""


class UnequalWeightsError(RebiasError):
    """The ranks' weights differ. A retry might continue from a checkpoint that was saved since."""

    exit_code = EXIT_GIVE_UP


class CrashLoopError(RebiasError):
    """The run crashes again and again at the same step."""

    exit_code = EXIT_GIVE_UP


class RankError(RebiasError):
    """An unexpected fault of this rank, or the loss of another; each rank prints its own."""


class RolledBack(RebiasError):  # noqa: N818 - an outcome, not a mistake
    """The run continues from its newest checkpoint, in the same processes."""


class InterruptedRun(RebiasError):  # noqa: N818 - an outcome, not a mistake
    """A signal asked the run to stop; its state was saved before this was raised."""

    exit_code = EXIT_INTERRUPTED
