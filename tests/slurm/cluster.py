"""A SLURM of three virtual nodes on this machine, with its own daemons, ports and keys.

n0 and n1 have four CPUs each, n2 has three, however many the machine has. Only the programs of an
installed SLURM are used: configuration, munge socket and state are in a folder of the test. It
needs root, because munge and slurmd do.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_PACKAGES = ("slurmd", "slurmctld", "slurm-client", "munge")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
_CONF = """
ClusterName=rebias-test
SlurmctldHost={host}
SlurmctldPort={control}
AuthType=auth/munge
# A requeued job waits until its old credential has expired, which takes two minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n0 NodeHostname={host} Port={n0} CPUs=4
NodeName=n1 NodeHostname={host} Port={n1} CPUs=4
NodeName=n2 NodeHostname={host} Port={n2} CPUs=3
PartitionName=main Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=n[0-1] MaxTime=INFINITE State=UP PriorityTier=9
PartitionName=uneven Nodes=n[0,2] MaxTime=INFINITE State=UP
"""
NODES = ("n0", "n1", "n2")


def why_not() -> str | None:
    """Return why SLURM cannot run here, or None if it can; install it if it is missing."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if all(shutil.which(program) for program in _PROGRAMS):
        return None
    if not shutil.which("apt-get"):
        return "no SLURM here, and no apt-get to install it"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *_PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True
        )
    if not all(shutil.which(program) for program in _PROGRAMS):
        return f"SLURM cannot be installed: {done.stderr.strip()[-300:]}"
    return None


def wait_until(condition: Callable[[], object], what: str, seconds: float = 1000) -> None:
    """Wait until a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in {seconds:.0f} s not: {what}"
        time.sleep(0.1)


class Cluster:
    """The daemons of a cluster, from ``start`` to ``stop``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf), "OMP_NUM_THREADS": "1"}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start munged, slurmctld and a slurmd for each node."""
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge/key"
        key.touch(0o400)
        key.write_bytes(os.urandom(128))
        with_ports = dict(zip(("control", *NODES), _free_ports(4), strict=True))
        host = socket.gethostname().partition(".")[0]
        self.conf.write_text(_CONF.format(host=host, folder=self.folder, **with_ports))
        own = [
            f"--{file}-file={self.folder}/munge/{file}" for file in ("key", "pid", "seed", "log")
        ]
        self._daemon(
            "munged", ["--foreground", "--force", f"--socket={self.folder}/munge/socket", *own]
        )
        wait_until((self.folder / "munge/socket").exists, "munged listens", 60)
        self._daemon("slurmctld", ["-D", "-i", "-f", str(self.conf)])
        for node in NODES:
            self.start_node(node)
        wait_until(
            lambda: (
                self.run("sinfo", "-h", "-N", "-o", "%T", check=False).split().count("idle")
                >= len(NODES)
            ),
            "all nodes are idle",
            90,
        )

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._daemon("slurmd", ["-D", "-N", node, "-f", str(self.conf)], key=node)

    def _daemon(self, program: str, words: list[str], key: str = "") -> None:
        key = key or program
        with (self.folder / f"{key}.out").open("ab") as out:
            self._daemons[key] = subprocess.Popen(
                [program, *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def lose_node(self, node: str) -> None:
        """Kill a node's slurmd and all its processes, as a power cut would."""
        for pid in self.processes():
            command = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"SLURMD_NODENAME={node}".encode() in command:
                os.kill(pid, signal.SIGKILL)
        daemon = self._daemons.pop(node)
        for pid in [*_children(daemon.pid), daemon.pid]:
            os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Run a command with this SLURM and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=1000, cwd=cwd
        )
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job; SLURM knows it until some minutes after the end."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job, check=False)
        return shown.partition("JobState=")[2].split(" ")[0] or "GONE"

    def show(self, job: str) -> str:
        """Return what SLURM shows of a job."""
        return self.run("scontrol", "show", "job", "--oneliner", job)

    def wait(self, job: str, seconds: float = 1000) -> str:
        """Wait until a job has ended and return its state."""
        # Only these states are an end. A busy controller may even give no answer.
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        last = ""

        def has_ended() -> bool:
            nonlocal last
            last = self.state(job)
            return last in ends

        wait_until(has_ended, f"job {job} has ended", seconds)
        return last

    def processes(self) -> list[int]:
        """Return the processes that belong to this cluster, daemons and jobs."""
        mark = f"SLURM_CONF={self.conf}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry))
        return found

    def stop(self) -> None:
        """Cancel all jobs, end the daemons, and check that nothing is left."""
        self.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        self.run("scancel", "--user=root", check=False)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), "all processes are gone", 30)


def _free_ports(count: int) -> list[int]:
    # Ports below those of outgoing connections, so that none is taken before the daemon starts,
    # and outside the range that jobs use.
    ports: list[int] = []
    for port in range(30_000 + os.getpid() % 1000 * 2, 32_700):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")


def _children(parent: int) -> list[int]:
    return [
        int(pid)
        for task in Path(f"/proc/{parent}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
