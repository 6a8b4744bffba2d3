"""How fast a run goes, and how it is shown: in a pipe and on a real terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebias_dist.telemetry.progress import Progress, Rate, describe
from rebias_dist.telemetry.writers import Telemetry


@given(
    seconds_per_step=st.floats(1e-4, 1e3),
    groups=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    first=st.integers(0, 10**6),
)
def test_a_constant_rate_is_found_at_once_in_any_grouping(seconds_per_step, groups, first):
    rate, step, now = Rate(), first, 5.0
    rate.update(step, now)
    assert rate.steps_per_second is None
    assert rate.seconds_left(3) is None
    for group in groups:
        step, now = step + group, now + group * seconds_per_step
        rate.update(step, now)
        assert rate.steps_per_second == pytest.approx(1 / seconds_per_step, rel=1e-5)
        assert rate.seconds_left(7) == pytest.approx(7 * seconds_per_step, rel=1e-5)
    rate.pause()
    now += 1000
    rate.resume(step, now)
    step, now = step + 2, now + 2 * seconds_per_step
    rate.update(step, now)
    assert rate.steps_per_second == pytest.approx(1 / seconds_per_step, rel=1e-5)


def test_the_rate_follows_with_its_time_constant():
    rate, now = Rate(memory=10.0), 0.0
    rate.update(0, now)
    seconds = [1.0] * 50 + [0.25] * 100
    for step, duration in enumerate(seconds, start=1):
        now += duration
        rate.update(step, now)
    ends = np.cumsum(seconds)
    weights = np.exp((ends - now) / 10)
    expected = weights.sum() / (weights * seconds).sum()
    print(f"difference to the closed form: {abs(rate.steps_per_second - expected):.3g}")
    assert rate.steps_per_second == pytest.approx(expected, rel=1e-12)
    assert 3 < rate.steps_per_second < 4


def test_lines_are_throttled_but_first_and_last_appear(tmp_path):
    # For its log.
    telemetry = Telemetry(tmp_path, rank=1, total_steps=40, global_batch=256, identity={})
    for interval, shown in [(1e9, [1, 100]), (0.0, list(range(1, 101)))]:
        lines = Progress(100, interval=interval)
        for step in range(1, 101):
            lines.show(step, "x")
        lines.close()
        log = tmp_path / "logs" / "rank1.log"
        steps = [int(s) for s in re.findall(r"step (\d+)/100, x", log.read_text())]
        assert steps == shown
        log.write_text("")
    interrupted = Progress(100, interval=1e9)
    for step in range(1, 51):
        interrupted.show(step, "x")
    interrupted.close()
    telemetry.close()
    assert [int(s) for s in re.findall(r"step (\d+)/", log.read_text())] == [1, 50]


def test_details_come_behind_all_that_a_narrow_terminal_has_to_show():
    line = describe(1, "f 0.1", 256.0, 61.0, "data wait 3 %")
    assert line == "epoch 1, f 0.1, 256 images/s, ETA 0:01:01, data wait 3 %"
    assert describe(1, "", None, None) == "epoch 1, ? images/s, ETA ?"
    for room in range(len(line) + 1):
        assert len(describe(1, "f 0.1", 256.0, 61.0, "data wait 3 %", room)) <= max(room, 11)
    some = [describe(1, "f 0.1", 256.0, 61.0, "a 3 %, b 4 %", room) for room in (50, 42, 30, 20)]
    assert some == [
        "epoch 1, f 0.1, 256 images/s, ETA 0:01:01, a 3 %",
        "epoch 1, f 0.1, 256 images/s, ETA 0:01:01",
        "f 0.1, ETA 0:01:01",
        "f 0.1, ETA 0:01:01",
    ]


SHORT = """
import logging, sys, time
from pathlib import Path
from rebias_dist.telemetry.writers import Telemetry
telemetry = Telemetry(Path(sys.argv[1]), rank=0, total_steps=30, global_batch=64, identity={})
for step in range(1, 31):
    time.sleep(0.02)
    telemetry.progress(step, epoch=1, text=f"f {1 / step:.3f} g0 0.250")
    if step % 10 == 5:
        logging.getLogger("rebias_dist").info("message %d", step)
telemetry.close()
"""


def run_in_terminal(command: list[str], columns: int) -> str:
    """Run a command whose stderr is a terminal of this width; return what it was sent."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    received = b""
    with subprocess.Popen(command, stderr=theirs) as process:
        os.close(theirs)
        while True:
            try:
                chunk = os.read(mine, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not chunk:
                break
            received += chunk
    os.close(mine)
    assert process.returncode == 0
    return received.decode()


def as_displayed(received: str) -> list[str]:
    """Return the lines that a terminal shows: a carriage return overwrites from the left."""
    lines = []
    for raw in received.replace("\r\n", "\n").split("\n"):
        line = ""
        for part in raw.split("\r"):
            line = part + line[len(part) :]
        lines.append(line.rstrip())
    return lines


MESSAGE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO (.+)")


def test_on_a_terminal_a_bar_below_whole_messages(tmp_path):
    received = run_in_terminal([sys.executable, "-c", SHORT, str(tmp_path)], columns=100)
    assert received.count("\r") > 5
    lines = [line for line in as_displayed(received) if line]
    print("\n".join(lines))
    messages = [match[1] for match in map(MESSAGE.fullmatch, lines) if match]
    assert messages == ["message 5", "message 15", "message 25"]
    (bar,) = [line for line in lines if not MESSAGE.fullmatch(line)]
    assert bar == lines[-1]
    assert re.fullmatch(
        r"100%\|█+\| 30/30, epoch 1, f 0\.033 g0 0\.250, [\d.e+]+ images/s, ETA 0:00:00", bar
    )
    assert len(bar) <= 100


WHOLE = """
import sys, time
from pathlib import Path
from rebias_dist.telemetry.writers import Telemetry
telemetry = Telemetry(Path(sys.argv[1]), rank=0, total_steps=448, global_batch=64, identity={})
details = "data wait 2 %, forward 28 %, backward 61 %, objective 4 %, communication 0 %, 775 MiB"
for step in range(1, 449):
    time.sleep(0.001)
    telemetry.progress(step, epoch=7, text="loss f 2.7453 g0 2.3786", details=details)
telemetry.close()
"""


@pytest.mark.parametrize("columns", [80, 140])
def test_the_line_of_the_demo_fits_its_terminal(tmp_path, columns):
    received = run_in_terminal([sys.executable, "-c", WHOLE, str(tmp_path)], columns)
    drawn = received.replace("\r", "\n").split("\n")
    lines = [line for line in drawn if "ETA" in line]  # all but the first, empty one
    assert len(lines) > 3
    for line in lines:
        print(line)
        assert len(line.rstrip()) <= columns
        # The bar is one, and the last part is whole. Its speed is longer than that of real runs.
        assert re.match(r" *\d+%\|[^|]{7,}\| \d+/448, ", line)
        assert re.search(r"loss f 2\.7453 g0 2\.3786, .*ETA (\?|\d+:\d\d:\d\d)", line)
        assert re.search(r"(ETA (\?|\d+:\d\d:\d\d)|\d %|MiB)$", line.rstrip())
    assert ("data wait 2 %" in lines[-1]) == (columns == 140)


@pytest.mark.parametrize("columns", [None, 0])
def test_elsewhere_whole_lines_without_carriage_returns(tmp_path, columns):
    command = [sys.executable, "-c", SHORT, str(tmp_path)]
    if columns is None:
        run = subprocess.run(command, capture_output=True, check=True)
        received = run.stderr.decode()
        assert run.stdout == b""
    else:
        received = run_in_terminal(command, columns).replace("\r\n", "\n")
    assert "\r" not in received
    assert received.endswith("\n")
    messages = []
    for line in received.splitlines():
        match = MESSAGE.fullmatch(line)
        assert match, line
        messages.append(match[1])
    assert messages[0].startswith("step 1/30, epoch 1, f 1.000 g0 0.250, ")
    assert messages[-1].startswith("step 30/30, epoch 1, f 0.033 g0 0.250, ")
    assert messages[-1].endswith("ETA 0:00:00")
    assert [m for m in messages if m.startswith("message")] == [
        "message 5",
        "message 15",
        "message 25",
    ]
    assert len(messages) < 10
    assert received == (tmp_path / "logs" / "rank0.log").read_text()


CLOSED = """
import logging, os, sys, time
from pathlib import Path
from rebias_dist.telemetry.writers import Telemetry
telemetry = Telemetry(Path(sys.argv[1]), rank=0, total_steps=30, global_batch=64, identity={})
log = logging.getLogger("rebias_dist")
log.info("on a terminal: %s", os.isatty(2))
telemetry.progress(1, epoch=1, text="f 1.0")
while os.isatty(2):
    time.sleep(0.05)
log.info("on a terminal: %s", os.isatty(2))
for step in range(2, 31):
    time.sleep(0.02)
    telemetry.progress(step, epoch=1, text=f"f {1 / step:.3f}", details="data wait 3 %")
telemetry.scalars(30, {"f/loss": 0.1}, epoch=1)
log.info("fault: %s", telemetry.fault)
telemetry.close()
"""


def test_a_terminal_that_is_closed_is_no_fault_of_the_run(tmp_path):
    """The streams are Python's own, as those of a program that calls the API."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", CLOSED, str(tmp_path)]
    with subprocess.Popen(command, stderr=theirs) as process:
        os.close(theirs)
        received = b""
        while b"epoch 1" not in received:
            received += os.read(mine, 65536)
        os.close(mine)
    assert process.returncode == 0
    log = (tmp_path / "logs/rank0.log").read_text()
    assert MESSAGE.findall(log) == ["on a terminal: True", "on a terminal: False", "fault: None"]
    assert '"f/loss"' in (tmp_path / "metrics.jsonl").read_text()
