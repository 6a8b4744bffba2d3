"""A conversion that is killed again and again ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data_shards.tiny import tree
from tests.data_shards.trees import NINE, jpeg, write_folder

IMAGES = 240
PER_SHARD = 8
SHARDS = IMAGES // PER_SHARD


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images, some of them damaged, some repeated, so that all of a conversion is at work."""
    images = {}
    for place, wnid in enumerate(NINE):
        names = [f"{wnid}_{number}.JPEG" for number in range(IMAGES // len(NINE))]
        contents = [jpeg(1000 * place + number, (320, 240)) for number in range(len(names))]
        contents[5] = contents[5][:-100]
        contents[6] = contents[7]
        # The pixels of another image in other bytes.
        contents[8] = contents[9][:2] + b"\xff\xfe\x00\x03a" + contents[9][2:]
        images[wnid] = dict(zip(names, contents, strict=True))
    return write_folder(tmp_path_factory.mktemp("source"), images)


def _command(source: Path, output: Path, workers: int) -> list[str]:
    command = [sys.executable, "-m", "data_shards", "convert", "imagenet9", "--split", "train"]
    command += ["--source", str(source), "--selection-fraction", "0", "--max-corrupt", "5"]
    command += ["--samples-per-shard", str(PER_SHARD), "--workers", str(workers)]
    return [*command, "--output", str(output)]


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("expected")
    subprocess.run(_command(source, output, 2), check=True, timeout=1000, capture_output=True)
    files = tree(output)
    assert len(files) == SHARDS + 4
    assert files["train/findings.jsonl"].count(b"same-pixels") == len(NINE)
    return files


def _finished(output: Path) -> int:
    """How many shards have a record; all of them once the split is there."""
    if (output / "train").is_dir():
        return SHARDS
    try:
        return len(list((output / ".train.convert" / "journal").iterdir()))
    except FileNotFoundError:
        return 0


def _kill_at_random(command: list[str], output: Path, shards: int, delay: float) -> bool:
    """Kill the command ``delay`` seconds after it has finished ``shards``; say whether it ran."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and _finished(output) < shards:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    _, shown = process.communicate(timeout=1000)
    assert process.returncode in (0, -signal.SIGKILL), shown
    return process.returncode != 0


def _check(source, expected, output, workers, kills, seed):
    rng = np.random.default_rng(seed)
    # Ascending, so that each kill falls into work that others have left; the last ones may
    # fall into the publication.
    targets = sorted(rng.integers(0, SHARDS + 1, kills).tolist())
    killed = 0
    for target in targets:
        killed += _kill_at_random(
            _command(source, output, workers), output, target, float(rng.uniform(0, 0.3))
        )
    print(f"killed {killed} times, at {targets} finished shards")
    assert killed >= kills / 2
    done = subprocess.run(
        _command(source, output, workers), capture_output=True, text=True, timeout=1000, check=False
    )
    assert done.returncode == 0, done.stderr
    assert tree(output) == expected


@pytest.mark.parametrize("workers", [1, 4])
def test_killed_at_random_moments(source, expected, tmp_path, workers):
    _check(source, expected, tmp_path, workers, kills=3, seed=workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_killed_at_twenty_random_moments(source, expected, tmp_path, workers):
    _check(source, expected, tmp_path, workers, kills=20, seed=10 + workers)


def test_two_at_once_do_the_work_once_and_agree(source, expected, tmp_path):
    both = [
        subprocess.Popen(_command(source, tmp_path, 1), stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in both:
        _, shown = process.communicate(timeout=1000)
        assert process.returncode == 0, shown
    assert tree(tmp_path) == expected
