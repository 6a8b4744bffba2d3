"""How many cores a process may use: quotas of containers and batch jobs count."""

import os
from pathlib import Path

import pytest

from data_shards.system.processes import usable_cores

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {}, ALL),
        ("0::/\n", {"cpu.max": "max 100000\n"}, ALL),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # half a core
        (f"0::/\n{'junk'}:x:/\n", {"cpu.max": "what"}, ALL),
        # A pod's limit stands in the group around that of the process.
        ("0::/pod/task\n", {"pod/task/cpu.max": "max 1000\n", "pod/cpu.max": "1000 1000\n"}, 1),
        ("0::/pod/task\n", {"pod/task/cpu.max": f"{1000 * ALL} 1000\n"}, ALL),
        # Version 1; inside a container its groups are mounted without their outer folders.
        (
            "4:cpu,cpuacct:/docker/5f\n1:name=systemd:/docker/5f\n",
            {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            ALL,
        ),
    ],
)
def test_quotas_count(tmp_path: Path, groups, files, cores):
    (tmp_path / "cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert usable_cores(tmp_path / "cgroup", tmp_path / "mounted") == cores


def test_without_control_groups_the_cores_count(tmp_path):
    before = os.sched_getaffinity(0)
    assert usable_cores(tmp_path / "none", tmp_path / "none") == ALL
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores(tmp_path / "none", tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, before)
