"""The program of a pod: one torchrun, whose ranks are asked to save and leave when the pod must go.

The container starts it as ``python -m launch.kubernetes.node torchrun-arguments --
training-arguments``. Its exit code is that of the run, which torchrun's is not: 2 and 3 end the
JobSet, and every other one but 0 lets it start anew (the policies of the manifest).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from data_shards.system.signals import on_stop_signals
from launch.record.exit_codes import final_code, read_codes
from rebias_dist.commands.parser import run_cli
from rebias_dist.errors import EXIT_FAILED, EXIT_INTERRUPTED, ConfigError

_INDEX = "JOB_COMPLETION_INDEX"


def main(argv: Sequence[str]) -> int:
    """Train on this node and return the exit code of the run.

    Raises:
        ConfigError: Kubernetes has not numbered the pod.
    """
    place = list(argv).index("--")
    layout, training = argv[:place], argv[place + 1 :]
    number = os.environ.get(_INDEX, "")
    if not number.isdecimal():
        raise ConfigError(f"{_INDEX}: {number!r} is not the number of a pod of an Indexed Job")
    with tempfile.TemporaryDirectory() as codes:
        words = [*layout, f"--node-rank={number}", "--max-restarts=0", f"--log-dir={os.devnull}"]
        words += ["-m", "launch.record.rank", codes, *training]
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        torchrun = subprocess.Popen(command)
        with on_stop_signals(lambda *_: _ask_to_leave(torchrun.pid)):
            code = torchrun.wait()
        ranks = set(read_codes(Path(codes)).values())
    final = final_code(ranks, code)
    if final is not None:
        return final
    return EXIT_INTERRUPTED if EXIT_INTERRUPTED in ranks else EXIT_FAILED


def _ask_to_leave(torchrun: int) -> None:
    # Ask the ranks, not torchrun, which kills ranks that need longer than 30 s. Before it has
    # started ranks there is nothing to save, so torchrun itself is asked.
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(torchrun)
        for asked in process.children() or [process]:
            with suppress(psutil.NoSuchProcess):
                asked.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    run_cli("rebias-launch", lambda: main(sys.argv[1:]))
