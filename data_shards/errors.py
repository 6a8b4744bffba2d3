"""Errors that end a command with one line, and its exit codes."""

EXIT_CLEAN = 0
EXIT_FINDINGS = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70


class DataShardsError(Exception):
    """The data are missing, damaged or not what their manifest says."""

    exit_code = EXIT_FINDINGS


class UsageError(DataShardsError):
    """Wrong use: an option or a path does not fit."""

    exit_code = EXIT_USAGE
