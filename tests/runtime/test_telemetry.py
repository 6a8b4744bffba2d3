"""What a run writes: read back with TensorBoard's own reader, a strict JSON parser and a pty."""

import fcntl
import io
import itertools
import json
import logging
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rebias_dist.runtime.figures import confusion_image, sample_grid
from rebias_dist.runtime.progress import Lines, Rate
from rebias_dist.runtime.telemetry import Telemetry

LOG = logging.getLogger("rebias_dist")


def start(folder: Path, *, rank: int = 0, total: int = 40, start_step: int = 0) -> Telemetry:
    return Telemetry(
        folder,
        rank=rank,
        total_steps=total,
        global_batch=256,
        start_step=start_step,
        identity={"name": "a-run", "world_size": 2},
    )


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def metrics_of(folder: Path) -> list[dict]:
    text = (folder / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    return events


def same_in_both(folder: Path) -> int:
    """Compare tags, steps, times and values of both records; return the number of values."""
    events, recorded = events_of(folder), {}
    for line in metrics_of(folder):
        for tag in line.keys() - {"step", "epoch", "time"}:
            recorded.setdefault(tag, []).append((line["step"], line["time"], line[tag]))
    assert sorted(recorded) == sorted(events.Tags()["scalars"])
    largest = 0.0
    for tag, points in recorded.items():
        seen = events.Scalars(tag)
        assert [event.step for event in seen] == [step for step, _, _ in points]
        for event, (_, moment, value) in zip(seen, points, strict=True):
            assert event.wall_time == moment
            if value is None:
                assert not math.isfinite(event.value)
                continue
            with np.errstate(over="ignore"):
                rounded = float(np.float32(value))
            assert event.value == rounded
            if math.isfinite(rounded):
                largest = max(largest, abs(event.value - value) / max(abs(value), 1e-38))
    print(f"largest relative difference of float32 events to metrics.jsonl: {largest:.3g}")
    return sum(map(len, recorded.values()))


def wait_for_next_second() -> None:
    # The names of event files begin with the second; TensorBoard reads them in their order.
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.01)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from(["train/f", "train/g0", "lr"]), st.floats(), min_size=1),
        min_size=1,
        max_size=6,
    )
)
def test_metrics_and_tensorboard_hold_the_same(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("run")
    telemetry = start(folder)
    for step, values in enumerate(lines, start=1):
        telemetry.scalars(step, values, epoch=step // 3)
    telemetry.close()
    assert same_in_both(folder) == sum(map(len, lines))
    for step, (line, values) in enumerate(zip(metrics_of(folder), lines, strict=True), start=1):
        assert (line["step"], line["epoch"]) == (step, step // 3)
        for tag, value in values.items():
            assert line[tag] == (value if math.isfinite(value) else None)
    warned = (folder / "logs" / "rank0.log").read_text().count("WARNING")
    assert warned == sum(not math.isfinite(v) for values in lines for v in values.values())


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    telemetry = start(tmp_path)
    for step in range(1, 4):
        telemetry.scalars(step, {"train/f": np.float32(step)}, epoch=0)
        assert [line["step"] for line in metrics_of(tmp_path)] == list(range(1, step + 1))
    telemetry.close()


@pytest.mark.parametrize(
    "torn", [b"", b'{"step": 31, "epoch": 3, "ti', b"\0\0\0\0", b"\xff\xfe\n", b"7", b"[1]"]
)
def test_resuming_drops_lost_steps_and_torn_lines(tmp_path, torn):
    first = start(tmp_path)
    for step in range(1, 31):
        first.scalars(step, {"train/f": step / 7}, epoch=step // 10)
        if step % 10 == 0:
            first.scalars(step, {"select/accuracy": step / 100}, epoch=step // 10)
    first.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    wait_for_next_second()
    second = start(tmp_path, start_step=20)
    for step in range(21, 41):
        second.scalars(step, {"train/f": -step / 7}, epoch=step // 10)
    second.close()
    lines = [line for line in metrics_of(tmp_path) if "train/f" in line]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert [line["train/f"] > 0 for line in lines] == [step <= 20 for step in range(1, 41)]
    evaluated = [line["step"] for line in metrics_of(tmp_path) if "select/accuracy" in line]
    assert evaluated == [10, 20]
    assert same_in_both(tmp_path) == 42


def test_starting_again_from_the_beginning_drops_everything(tmp_path):
    first = start(tmp_path)
    for step in range(3):
        first.scalars(step, {"train/f": 1.0}, epoch=0)
    first.close()
    wait_for_next_second()
    second = start(tmp_path)
    second.scalars(0, {"train/f": 2.0}, epoch=0)
    second.close()
    assert [(line["step"], line["train/f"]) for line in metrics_of(tmp_path)] == [(0, 2.0)]
    assert same_in_both(tmp_path) == 1


STUCK = """
import signal, sys
from pathlib import Path
from rebias_dist.runtime.telemetry import Telemetry
telemetry = Telemetry(Path(sys.argv[1]), rank=0, total_steps=40, global_batch=2, identity={})
for step in range(1, 26):
    telemetry.scalars(step, {"train/f": 1 / step}, epoch=0)
    telemetry.progress(step, epoch=0, text="")
    telemetry.state("running", step=step, epoch=0)
    if step == 20:
        telemetry.flush()  # as before a checkpoint
signal.pause()
"""


def test_a_killed_run_resumes_without_gap_or_repetition(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path)], stderr=subprocess.DEVNULL
    ) as process:
        metrics = tmp_path / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 25:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    wait_for_next_second()
    telemetry = start(tmp_path, start_step=20)
    for step in range(21, 31):
        telemetry.scalars(step, {"train/f": 1 / step}, epoch=0)
    telemetry.close()
    assert [line["step"] for line in metrics_of(tmp_path)] == list(range(1, 31))
    assert same_in_both(tmp_path) == 30


READER = """
import json, sys
seen = set()
while len(seen) < 100:
    state = json.load(open(sys.argv[1]))
    assert state["name"] == "a-run" and state["padding"] == "x" * 100_000
    seen.add(state["step"])
"""


def test_state_is_whole_whenever_it_is_read(tmp_path):
    telemetry, padding = start(tmp_path), "x" * 100_000
    telemetry.state("running", step=0, epoch=0, padding=padding)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "state.json")], stderr=subprocess.PIPE
    ) as reader:
        for step in itertools.count(1):
            telemetry.state("running", step=step, epoch=0, force=True, padding=padding)
            if reader.poll() is not None:
                break
        assert reader.stderr is not None
        assert reader.returncode == 0, reader.stderr.read().decode()
    telemetry.close()


def test_state_says_how_the_run_stands(tmp_path):
    def read() -> dict:
        return json.loads((tmp_path / "state.json").read_text(), parse_constant=refuse)

    telemetry = start(tmp_path, total=10)
    before = time.time()
    telemetry.state("starting", step=0, epoch=0, best=math.nan, radii={"f": math.inf, "g": [1.5]})
    state = read()
    assert before <= state.pop("updated") <= time.time()
    assert state == {
        "name": "a-run",
        "world_size": 2,
        "best": None,
        "radii": {"f": None, "g": [1.5]},
        "status": "starting",
        "step": 0,
        "total_steps": 10,
        "epoch": 0,
        "eta_seconds": None,
        "images_per_s": None,
    }
    for step in range(1, 5):
        telemetry.progress(step, epoch=1, text="f 0.1")
    telemetry.state("running", step=4, epoch=1)
    state = read()
    assert (state["status"], state["step"], state["epoch"]) == ("running", 4, 1)
    # 6 steps of 256 images are left.
    assert state["eta_seconds"] * state["images_per_s"] == pytest.approx(6 * 256)
    telemetry.state("running", step=5, epoch=1, force=True)
    assert read()["step"] == 5
    telemetry.state("finished", step=10, epoch=1)
    state = read()
    assert (state["status"], state["eta_seconds"]) == ("finished", 0)
    telemetry.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "logs",
        "metrics.jsonl",
        "state.json",
        "tensorboard",
    ]


def test_other_ranks_write_only_their_log(tmp_path, capfd):
    telemetry = start(tmp_path, rank=3)
    telemetry.scalars(1, {"train/f": 1.0}, epoch=0)
    telemetry.progress(1, epoch=0, text="f 1.0")
    telemetry.state("running", step=1, epoch=0, force=True)
    telemetry.text("config", 0, "seed: 0")
    telemetry.image("samples", 0, np.zeros((3, 4, 4), dtype=np.uint8))
    telemetry.hparams({"seed": 0}, {"accuracy": 0.5})
    telemetry.flush()
    LOG.info("rank 3 is here")
    telemetry.close()
    LOG.info("after the end")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == ["logs/rank3.log"]
    lines = (tmp_path / "logs" / "rank3.log").read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == ["rank 3 is here"]
    assert capfd.readouterr() == ("", "")


def test_the_logger_is_as_before_after_close(tmp_path):
    def settings_of_logger():
        return list(LOG.handlers), LOG.level, LOG.propagate

    before = settings_of_logger()
    telemetry = start(tmp_path)
    assert settings_of_logger() != before
    LOG.info("first life")
    telemetry.close()
    telemetry.close()
    assert settings_of_logger() == before
    telemetry = start(tmp_path)
    LOG.info("second life")
    telemetry.close()
    text = (tmp_path / "logs" / "rank0.log").read_text()
    assert text.count("first life") == text.count("second life") == 1


def test_hparams_lie_in_the_event_folder_of_the_run(tmp_path):
    config = {"method.name": "rebias", "method.lambda_f": 1.0, "seed": 3, "deterministic": True}
    telemetry = start(tmp_path)
    telemetry.scalars(17, {"train/f": 1.0}, epoch=0)
    telemetry.hparams(config, {"unbiased": 0.75})
    telemetry.text("config", 0, "seed: 3")
    telemetry.close()
    assert not [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()]
    events = events_of(tmp_path)
    contents = events.PluginTagToContent("hparams")
    start_info = HParamsPluginData.FromString(contents["_hparams_/session_start_info"])
    found = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in start_info.session_start_info.hparams.items()
    }
    assert found == config
    experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["hparam/unbiased"]
    assert [(e.step, e.value) for e in events.Scalars("hparam/unbiased")] == [(17, 0.75)]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_images_decode_to_what_was_given(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 28, 28), dtype=np.uint8)
    pictures = {
        "samples": sample_grid(images, columns=3),
        "confusion": confusion_image(np.eye(3), ["0", "1", "2"], ["a", "b", "c"], "Accuracy"),
    }
    telemetry = start(tmp_path)
    for tag, picture in pictures.items():
        telemetry.image(tag, 4, picture)
    telemetry.close()
    events = events_of(tmp_path)
    for tag, picture in pictures.items():
        (event,) = events.Images(tag)
        decoded = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        assert event.step == 4
        assert (decoded.transpose(2, 0, 1) == picture).all()


@given(
    n=st.integers(1, 9),
    side=st.sampled_from([(1, 1), (28, 28), (14, 20), (64, 64), (100, 3)]),
    columns=st.integers(1, 5),
)
@settings(max_examples=30, deadline=None)
def test_every_pixel_of_a_sample_becomes_a_square(n, side, columns):
    images = np.random.default_rng(n).integers(0, 255, (n, 3, *side), dtype=np.uint8)
    grid = sample_grid(images, columns)
    factor = max(1, math.ceil(64 / max(side)))
    height, width = (factor * s for s in side)
    covered = 0
    for index, image in enumerate(images):
        row, column = divmod(index, min(columns, n))
        for y, x in [(0, 0), (height - 1, width - 1), (height // 2, width // 3)]:
            shown = grid[:, row * (height + 2) + y, column * (width + 2) + x]
            assert (shown == image[:, y // factor, x // factor]).all()
        covered += image[0].size * factor**2
    # All else is background, which no sample contains.
    assert (grid != 255).all(0).sum() == covered
    assert (grid == 255).all(0).sum() == grid[0].size - covered


def cividis(value: float) -> list[int]:
    from matplotlib import colormaps

    return [round(255 * float(c)) for c in colormaps["cividis"](value)[:3]]


def pixels_of(picture: np.ndarray, colour: list[int]) -> int:
    return int((np.abs(picture.astype(int) - np.array(colour)[:, None, None]) <= 1).all(0).sum())


def test_confusion_shows_values_as_colour_and_number():
    low, high = cividis(0.0), cividis(1.0)
    names = ["a", "b", "c", "d"]
    areas = {}
    for ones in (0, 4, 8):
        matrix = np.zeros((4, 4))
        matrix.flat[:ones] = 1
        picture = confusion_image(matrix, names, names, "Accuracy")
        assert picture.dtype == np.uint8
        areas[ones] = pixels_of(picture, high), pixels_of(picture, low)
    cell = (areas[8][0] - areas[0][0]) / 8
    print(f"a cell has {cell:.0f} pixels of its own colour")
    assert cell > 1000
    assert areas[4][0] - areas[0][0] == pytest.approx(4 * cell, rel=0.02)
    assert areas[0][1] - areas[8][1] == pytest.approx(8 * cell, rel=0.05)
    # The same colours with other numbers make another picture; so do counts.
    one = confusion_image(np.array([[10, 0]]), ["a"], ["b", "c"], "Counts", "label", "colour")
    two = confusion_image(np.array([[99, 0]]), ["a"], ["b", "c"], "Counts", "label", "colour")
    assert one.shape == two.shape
    assert 0 < (one != two).any(0).sum() < 0.05 * one[0].size


def test_confusion_takes_missing_cells_and_many_classes():
    names = [f"class {i}" for i in range(9)]
    empty = confusion_image(np.full((9, 9), np.nan), names, names, "t")
    zeros = confusion_image(np.zeros((9, 9)), names, names, "t")
    assert pixels_of(empty, cividis(0.0)) < 0.1 * pixels_of(zeros, cividis(0.0))
    names = [str(i) for i in range(1000)]
    large = confusion_image(np.eye(1000, dtype=np.int64), names, names, "ImageNet")
    assert max(large.shape) <= 1600
    with pytest.raises(ValueError, match="3 row labels"):
        confusion_image(np.eye(2), ["a", "b", "c"], ["a", "b"], "t")


def test_figures_need_no_display_and_no_pyplot():
    code = (
        "import sys, rebias_dist.runtime.figures as f; assert 'matplotlib' not in sys.modules;"
        "import numpy as np; f.confusion_image(np.eye(2), list('ab'), list('ab'), 't');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


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
    telemetry = start(tmp_path, rank=1)  # for its log
    for interval, shown in [(1e9, [1, 100]), (0.0, list(range(1, 101)))]:
        lines = Lines(100, interval)
        for step in range(1, 101):
            lines.show(step, "x")
        lines.close()
        log = tmp_path / "logs" / "rank1.log"
        steps = [int(s) for s in re.findall(r"step (\d+)/100, x", log.read_text())]
        assert steps == shown
        log.write_text("")
    interrupted = Lines(100, 1e9)
    for step in range(1, 51):
        interrupted.show(step, "x")
    interrupted.close()
    telemetry.close()
    assert [int(s) for s in re.findall(r"step (\d+)/", log.read_text())] == [1, 50]


SHORT = """
import logging, sys, time
from pathlib import Path
from rebias_dist.runtime.telemetry import Telemetry
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


def test_a_full_disk_is_a_fault_to_be_shared_not_an_exception(tmp_path):
    telemetry = Telemetry(tmp_path, rank=0, total_steps=5, global_batch=4, identity={})
    telemetry._metrics.close()
    telemetry._metrics = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    telemetry.scalars(1, {"f/loss": 1.0}, epoch=0)
    assert str(telemetry.fault) == f"{tmp_path}: cannot be written (No space left on device)"
    telemetry.scalars(2, {"f/loss": 1.0}, epoch=0)
    telemetry.close()
