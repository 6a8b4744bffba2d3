"""Serve TensorBoard for some or all runs, on loopback, and print how to reach it from elsewhere."""

from __future__ import annotations

import argparse
import getpass
import os
import platform
import socket
import sys
from contextlib import suppress
from pathlib import Path

from launch.commands.common import add_name
from launch.record.runs import run_folder
from rebias_dist.errors import ConfigError

EXAMPLES = """
rebias-launch tensorboard
rebias-launch tensorboard first second --port 6007
"""

_FIRST_PORT, _PORTS = 6006, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tensorboard``."""
    add_name(parser, nargs="*")
    parser.add_argument(
        "--port", type=int, metavar="PORT", help=f"port [first free one from {_FIRST_PORT}]"
    )


def run(arguments: argparse.Namespace) -> int:
    """Become TensorBoard."""
    logdir = _logdir(arguments.runs_dir, arguments.name)
    port = _free_port(arguments.port)
    print(f"TensorBoard: http://127.0.0.1:{port}/ (Ctrl-C ends it)")
    try:
        there = f"{getpass.getuser()}@{platform.node()}"
    except (KeyError, OSError):  # in a container, the user may have no name
        there = platform.node()
    print(f"from your own machine: ssh -N -L {port}:127.0.0.1:{port} {there}", flush=True)
    words = [sys.executable, "-m", "tensorboard.main", *logdir, "--host=127.0.0.1"]
    os.execv(sys.executable, [*words, f"--port={port}"])


def _logdir(runs_dir: str, names: list[str]) -> list[str]:
    if not names:
        if not Path(runs_dir).is_dir():
            raise ConfigError(f"--runs-dir: no folder {runs_dir}")
        return [f"--logdir={runs_dir}"]
    folders = [run_folder(runs_dir, name) for name in names]
    for folder in folders:
        if any(sign in str(folder) for sign in ",:"):
            raise ConfigError(f"--runs-dir: {runs_dir!r}: TensorBoard cannot take ',' or ':'")
    spec = ",".join(f"{folder.name}:{folder / 'tensorboard'}" for folder in folders)
    return [f"--logdir_spec={spec}"]


def _free_port(wanted: int | None) -> int:
    if wanted is not None and not 1 <= wanted <= 65535:
        raise ConfigError(f"--port: {wanted} is not a port; use 1 to 65535")
    ports = [wanted] if wanted is not None else range(_FIRST_PORT, _FIRST_PORT + _PORTS)
    for port in ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    which = f"{wanted} is" if wanted is not None else f"{ports[0]} to {ports[-1]} are all"
    raise ConfigError(f"--port: {which} in use; choose another")
