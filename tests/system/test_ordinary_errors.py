"""Ordinary errors of every command are one line with the path and code 1 or 2."""

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import pytest
from packaging.version import Version

from tests import ROOT
from tests.commands.test_completion import SCRIPTS
from tests.data_shards.trees import train_images, write_folder

RUN = ROOT / "tests/fixtures/format2/run"
SHARDS = ROOT / "tests/fixtures/format2/shards"


def as_a_user() -> None:
    """Let permissions count for root too: take CAP_DAC_OVERRIDE and its like from the program."""
    libc = ctypes.CDLL(None)
    for capability in range(4):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails where there is none to drop


def with_small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


def command(
    words: Sequence[str], cwd: Path, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from {SCRIPTS[words[0]]} import cli; sys.exit(cli())"
    given = {k: v for k, v in os.environ.items() if environment.get(k) != ""}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words[1:])],
        cwd=cwd,
        env={**given, "PYTHONPATH": str(ROOT), **{k: v for k, v in environment.items() if v}},
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a refused command printed, besides warnings."""
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def source(tmp_path) -> Path:
    return write_folder(tmp_path / "source/train", train_images(each=2)).parent


def converting(source: Path, output: Path) -> list[str]:
    words = ["rebias-shards", "convert", "imagenet9", "--source", str(source), "--workers", "1"]
    return [*words, "--output", str(output), "--selection-fraction", "0.5"]


WRITING = [
    ["rebias-sweep", "biased_mnist/sweeps/demo", "--runs-dir", "{out}"],
    ["rebias-sweep", "biased_mnist/sweeps/demo", "--runs-dir", "{out}", "--table"],
    ["rebias-train", f"--config={RUN}/config.yaml", f"--data.root={SHARDS}", "--runs-dir={out}"],
    ["rebias-launch", "local", "biased_mnist/demo", "--runs-dir", "{out}"],
    ["rebias-report", f"{RUN}", "--out", "{out}"],
    ["rebias-export", f"{RUN}", "--out", "{out}"],
    ["rebias-shards", "convert", "biased-mnist", "--output", "{out}", "--split", "rho0"],
    ["rebias-shards", "inspect", f"{SHARDS}/train", "--contact-sheet", "{out}"],
]


@pytest.mark.parametrize("words", WRITING, ids=lambda words: "-".join(words[:2]))
def test_a_folder_that_cannot_be_written(words, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    out = closed / ("sheet.png" if "inspect" in words else "out")
    done = command([word.format(out=out) for word in words], tmp_path, as_a_user)
    assert f"{closed}/" in (line := refusal(done))
    assert "Permission denied" in line


def test_finished_shards_may_be_read_only(source, tmp_path):
    words = converting(source, tmp_path / "out")
    assert command(words, tmp_path).returncode == 0
    for path in [*(tmp_path / "out").rglob("*"), tmp_path / "out"]:
        path.chmod(path.stat().st_mode & ~0o222)
    done = command(words, tmp_path, as_a_user)
    assert (done.returncode, done.stdout.count("present, ")) == (0, 2), done.stderr
    words = ["rebias-shards", "verify", str(tmp_path / "out")]
    assert command(words, tmp_path, as_a_user).returncode == 0


def test_a_limit_on_the_size_of_files(source, tmp_path):
    for words in (converting(source, tmp_path / "shards"), *WRITING[4:6]):
        out = tmp_path / words[0]
        words = [word.format(out=out) for word in words]
        line = refusal(command(words, tmp_path, with_small_files))
        assert str(tmp_path) in line
        assert "File too large" in line


def test_a_user_without_home_and_name(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef no(*arguments):\n    raise KeyError(arguments)\npwd.getpwuid = no\n"
    )
    nobody = {"PYTHONPATH": f"{tmp_path}:{ROOT}", **dict.fromkeys(["HOME", "REBIAS_CACHE"], "")}
    nobody |= dict.fromkeys(["USER", "LOGNAME", "LNAME", "USERNAME", "MPLCONFIGDIR"], "")
    done = command(["rebias-train", "--dry-run"], tmp_path, **nobody)
    assert "set REBIAS_CACHE" in refusal(done)
    if Version(matplotlib.__version__) < Version("3.11"):
        nobody["MPLCONFIGDIR"] = str(tmp_path)  # without it these versions end
    done = command(["rebias-report", str(RUN), "--out", "report"], tmp_path, **nobody)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    (tmp_path / "runs").mkdir()
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/__init__.py").touch()
    (tmp_path / "tensorboard/main.py").touch()  # in place of a server without end
    done = command(["rebias-launch", "tensorboard"], tmp_path, **nobody)
    assert (done.returncode, done.stderr) == (0, "")
