"""Phases are disjoint, add up to the whole, and wait for nothing until they are read."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebias_dist.phases import PHASES, DeviceClock, HostClock, phase, switch, timed_by


class Device:
    """A device that is ``behind`` seconds of work behind the process that gives it out."""

    def __init__(self, behind: int) -> None:
        self.given, self.behind = 0, behind
        self.events, self.waits = 0, 0

    def work(self, seconds: int) -> None:
        self.given += seconds

    def event(self) -> "DeviceEvent":
        self.events += 1
        return DeviceEvent(self)


class DeviceEvent:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, 0

    def record(self) -> None:
        self.at = self.device.given

    def query(self) -> bool:
        return self.at <= self.device.given - self.device.behind

    def synchronize(self) -> None:
        self.device.waits += 1
        self.device.behind = 0

    def elapsed_time(self, end: "DeviceEvent", /) -> float:
        assert self.query()
        assert end.query()
        return 1e3 * (end.at - self.at)


# What a block does: seconds of work, or a phase with a block of its own.
blocks = st.recursive(
    st.lists(st.integers(0, 1000), max_size=3),
    lambda inner: st.lists(
        st.one_of(st.integers(0, 1000), st.tuples(st.sampled_from(PHASES), inner)), max_size=4
    ),
    max_leaves=30,
)


def _run(block, device, name, expected):
    for part in block:
        if isinstance(part, int):
            device.work(part)
            expected[name] += part
        else:
            with phase(part[0]):
                _run(part[1], device, part[0], expected)


@given(blocks, blocks, st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_each_second_counts_once_for_the_innermost_phase(first, second, behind):
    device = Device(behind)
    clock = DeviceClock(device.event)
    with timed_by(clock):
        for block in (first, second):
            expected = dict.fromkeys(PHASES, 0)
            _run(block, device, "other", expected)
            assert clock.read() == pytest.approx(expected)


def test_on_the_host_the_phases_add_up_to_the_time_between_the_readings():
    clock = HostClock()
    with timed_by(clock):
        before = time.perf_counter()
        clock.read()
        begin = time.perf_counter()
        for _ in range(100):
            with phase("forward"), phase("communication"):
                pass
            with phase("backward"):
                switch("communication")
        end = time.perf_counter()
        seconds = clock.read()
        after = time.perf_counter()
    assert all(value >= 0 for value in seconds.values())
    assert end - begin <= sum(seconds.values()) + 1e-9
    assert sum(seconds.values()) <= after - before + 1e-9
    assert seconds["objective"] == seconds["optimizer"] == seconds["data_wait"] == 0


@pytest.mark.parametrize("behind", [0, 50, 10**9])
def test_only_a_reading_waits_for_the_device(behind):
    device = Device(behind)
    clock = DeviceClock(device.event)
    steps = 10_000
    with timed_by(clock):
        for _ in range(steps):
            with phase("forward"):
                device.work(1)
            with phase("backward"):
                device.work(2)
    assert device.waits == 0
    if behind < steps:
        assert device.events < 5000, "events are used again"
    seconds = clock.read()
    assert device.waits == 1
    assert (seconds["forward"], seconds["backward"]) == pytest.approx((steps, 2 * steps))
    assert sum(seconds.values()) == pytest.approx(3 * steps)


def _fail():
    with phase("forward"):
        switch("communication")
        _ = 1 / 0


def test_an_error_ends_the_phase_that_it_leaves():
    device = Device(0)
    clock = DeviceClock(device.event)
    with timed_by(clock):
        with phase("objective"):
            with pytest.raises(ZeroDivisionError):
                _fail()
            device.work(3)
        device.work(4)
    seconds = clock.read()
    assert (seconds["objective"], seconds["other"]) == (3, 4)


def test_marks_do_nothing_where_no_clock_is_in_use():
    device = Device(0)
    clock = DeviceClock(device.event)
    with phase("forward"):
        switch("objective")
        device.work(1)
        with timed_by(clock):
            device.work(2)
    assert clock.read()["other"] == 3
    assert device.events == 2
