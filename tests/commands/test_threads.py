"""Threads of a program that shares its machine."""

import os

import pytest

from rebias_dist.commands.parser import set_thread_defaults

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_that_wait_soon_leave_the_core_to_others(monkeypatch, given):
    for name in NAMES:
        monkeypatch.setenv(name, given.get(name, ""))  # so that all are restored afterwards
        if name not in given:
            monkeypatch.delenv(name)
    set_thread_defaults()
    found = {name: os.environ[name] for name in NAMES if name in os.environ}
    found.pop("OMP_NUM_THREADS", None)  # set where there is a quota
    if "OMP_WAIT_POLICY" in given:
        assert found == given
    else:
        assert found == {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1", **given}
