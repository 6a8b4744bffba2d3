"""What the tests share: a small set of real digits, and where caches go."""

import os
import signal
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data_shards.sources.mnist import load_embedded

# A shell that starts pytest in the background has it ignore SIGINT, and nohup SIGHUP. Every process
# that a test starts would inherit that; with handlers of our own they begin as from a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TRAIN_PER_DIGIT, TEST_PER_DIGIT = 48, 12


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory) -> Path:
    """A folder of IDX files, as MNIST's, with 480 real training digits and 120 test digits."""
    folder = tmp_path_factory.mktemp("mnist")
    digits = load_embedded()
    members = [np.flatnonzero(digits.labels == digit) for digit in range(10)]
    for name, begin, end in (
        ("train", 0, TRAIN_PER_DIGIT),
        ("t10k", TRAIN_PER_DIGIT, TRAIN_PER_DIGIT + TEST_PER_DIGIT),
    ):
        chosen = np.concatenate([indices[begin:end] for indices in members])
        images, labels = digits.images[chosen], digits.labels[chosen].astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, len(images), 28, 28) + images.tobytes()
        )
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, len(labels)) + labels.tobytes()
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Keep what tests make out of the user's cache (also in the processes that they start)."""
    before = os.environ.get("REBIAS_CACHE")
    os.environ["REBIAS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["REBIAS_CACHE"]
    else:
        os.environ["REBIAS_CACHE"] = before


@pytest.fixture
def small_run(few_digits, tmp_path):
    """The dotted settings of a run that takes seconds: few digits, small networks."""
    return {
        "runs_dir": str(tmp_path / "runs"),
        "global_batch": 48,
        "micro_batch": 12,
        "epochs": 3,
        "precision": "float64",
        "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
        "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
        "radius": {"f": 1.0, "g": 1.0},
        "evaluate": {"every_epochs": 3},
        "log": {"to": []},  # drawing and writing for TensorBoard takes as long as the training
        "data": {"source": str(few_digits), "image_size": 8, "rho": 0.8},
    }


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of 2 MB, or of as many as the test says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    megabytes = getattr(request, "param", 2)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
