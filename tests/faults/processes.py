"""Real training processes with an end in any case, and a search for those that outlive it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

DEADLINE = 1000.0  # seconds for any test's run, on a machine that does other things as well
_MARK = "REBIAS_TEST_MARK"


@dataclass
class Ended:
    """A command that has ended, or was ended."""

    code: int
    out: str
    seconds: float
    left: list[str]
    """Command lines of processes that outlived it."""

    @property
    def errors(self) -> list[str]:
        """The product's own lines that say what went wrong."""
        return [line for line in self.out.splitlines() if line.startswith("rebias-train: error")]


def outliving(mark: str) -> dict[int, str]:
    """Return the processes that carry a mark in their environment, but for zombies."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def listening(processes: Iterable[int]) -> list[str]:
    """The addresses at which processes listen; one that has ended meanwhile has none."""
    own = set()
    for process in processes:
        try:
            handles = [os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()]
        except OSError:
            continue
        own |= {handle[8:-1] for handle in handles if handle.startswith("socket:[")}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in own:
                number = bytes.fromhex(fields[1].partition(":")[0])
                if table == "tcp":
                    found.append(socket.inet_ntoa(number[::-1]))
                else:
                    found.append("::" if not any(number) else number.hex())
    return found


class Started:
    """A command at work in a session of its own."""

    def __init__(self, command: Sequence[str], cwd: Path, **environment: str) -> None:
        self.mark = secrets.token_hex(8)
        cwd.mkdir(parents=True, exist_ok=True)
        self._output = cwd / f"output-{self.mark}.txt"
        given = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**given, "OMP_NUM_THREADS": "1", _MARK: self.mark, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._begin = time.monotonic()

    def said(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(errors="replace")

    def wait_for(self, text: str, deadline: float = DEADLINE) -> None:
        """Wait until it has printed ``text``."""
        end = time.monotonic() + deadline
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def ranks(self) -> list[int]:
        """The process numbers of the training processes, in the order of their ranks."""
        found = []
        for number, line in outliving(self.mark).items():
            environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
            rank = [e[5:] for e in environment if e.startswith(b"RANK=")]
            if rank and "rebias_dist.train" in line:
                found.append((int(rank[0]), number))
        return [number for _, number in sorted(found)]

    def end(self, deadline: float = DEADLINE) -> Ended:
        """Wait for its end, and for that of all that it has started; end them if need be."""
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        seconds = time.monotonic() - self._begin
        # Workers of a data loader look every five seconds whether their parent is still there.
        end = time.monotonic() + 15
        while (left := outliving(self.mark)) and time.monotonic() < end:
            time.sleep(0.2)
        for number in left:
            os.kill(number, signal.SIGKILL)
        self.process.wait()
        assert code != -signal.SIGKILL or seconds < deadline, f"no end: {left}\n{self.said()}"
        return Ended(code, self.said(), seconds, list(left.values()))


def torchrun_command(ranks: int, *arguments: str, module: str = "rebias_dist.train") -> list[str]:
    """A torchrun on this machine alone that nobody outside can reach."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    return [*command, "-m", module, *arguments]


def torchrun(ranks: int, *arguments: str, cwd: Path, **environment: str) -> Ended:
    """Run the training under torchrun to its end."""
    return Started(torchrun_command(ranks, *arguments), cwd, **environment).end()


def write_config(path: Path, values: dict) -> str:
    """Write a configuration file; return its path as an argument."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return str(path)
