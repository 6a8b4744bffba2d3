"""Work that takes long says so."""

import logging
import time

import pytest

from rebias_dist.ranks.waits import told


def _until(true, what: str) -> None:
    end = time.monotonic() + 1000
    while not true():
        assert time.monotonic() < end, f"{what}: never"
        time.sleep(0.01)


def test_it_says_how_much_is_done_and_how_long_the_rest_takes(caplog):
    caplog.set_level(logging.INFO, "rebias_dist")
    with told("work", 4, after=0.05) as work:
        work.done = 1
        _until(lambda: caplog.messages, "a line")
    line = caplog.messages[0]
    assert line.startswith("work: 1 of 4, 0:00:")
    assert line.endswith(" left")
    with told("uncounted", after=0.05):
        _until(lambda: "uncounted: 0:00" in caplog.text, "a line")


@pytest.mark.parametrize("aloud", [False, True])
def test_it_is_silent_where_nothing_takes_long_or_nobody_is_to_speak(caplog, aloud):
    caplog.set_level(logging.INFO, "rebias_dist")
    after = 1000.0 if aloud else 0.0
    with told("work", aloud=aloud, after=after), told("other", after=0.05):
        _until(lambda: "other" in caplog.text, "a line")
    assert "work" not in caplog.text


def test_without_a_log_it_goes_to_stderr(capsys):
    logger, root = logging.getLogger("rebias_dist"), logging.getLogger()
    assert not logger.handlers
    before, root.handlers = root.handlers, []  # pytest's own
    said = ""
    try:
        with told("work", after=0.05):
            end = time.monotonic() + 1000
            while "work: 0:00" not in said:
                assert time.monotonic() < end
                said += capsys.readouterr().err
    finally:
        root.handlers = before
    assert " INFO " in said
