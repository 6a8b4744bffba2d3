"""Network namespaces as hosts: each has its own address on one switch, and can be cut off.

The switch lies in a namespace too, so the machine's own network does not change.
"""

import os
import shutil
import subprocess


def why_not() -> str | None:
    """Return why namespaces cannot be made here, or None if they can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the program ip"
    name = f"rebias-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)


class Hosts:
    """Several hosts, from ``start`` to ``stop``; host k has the address 10.77.0.(k + 1)."""

    def __init__(self, count: int) -> None:
        self._names = [f"rebias-{os.getpid()}-{host}" for host in range(count)]
        self._switch = f"rebias-{os.getpid()}-switch"

    def start(self) -> None:
        """Make the switch and connect the hosts to it."""
        _ip("netns", "add", self._switch)
        self._inside(self._switch, "link", "add", "switch", "type", "bridge")
        self._inside(self._switch, "link", "set", "switch", "up")
        for host, name in enumerate(self._names):
            _ip("netns", "add", name)
            other_end = ["peer", "name", f"port{host}", "netns", self._switch]
            self._inside(name, "link", "add", "eth0", "type", "veth", *other_end)
            self._inside(name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                self._inside(name, "link", "set", link, "up")
            self._inside(self._switch, "link", "set", f"port{host}", "master", "switch")
            self.plug(host)

    @staticmethod
    def _inside(name: str, *words: str) -> None:
        _ip("-netns", name, *words)

    @staticmethod
    def address(host: int) -> str:
        """Return the address of a host."""
        return f"10.77.0.{host + 1}"

    def cut(self, host: int) -> None:
        """Disconnect a host without notice: no packet reaches it or leaves it."""
        self._inside(self._switch, "link", "set", f"port{host}", "nomaster")

    def plug(self, host: int) -> None:
        """Connect a host to the switch."""
        self._inside(self._switch, "link", "set", f"port{host}", "master", "switch")
        self._inside(self._switch, "link", "set", f"port{host}", "up")

    def on(self, host: int) -> list[str]:
        """Return the words that make the command after them run on a host."""
        return ["ip", "netns", "exec", self._names[host]]

    def stop(self) -> None:
        """Remove the hosts and the switch; fail if a process still runs there."""
        left = []
        for name in (*self._names, self._switch):
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            left += listed.stdout.split()
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        assert not left, f"still running: {left}"
