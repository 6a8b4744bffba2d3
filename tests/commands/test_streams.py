"""Standard streams as they are: every command, and what it does besides printing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import data_shards.__main__
import launch.__main__
from tests import ROOT
from tests.commands.test_completion import SCRIPTS
from tests.commands.test_report import write_run
from tests.faults.processes import write_config
from tests.launch.launched import started, state

RUN = ROOT / "tests/fixtures/format2/run"
SHARDS = ROOT / "tests/fixtures/format2/shards"
HELP = [
    *([script] for script in SCRIPTS),
    *(["rebias-shards", command] for command in data_shards.__main__._COMMANDS),
    *(["rebias-launch", command] for command in launch.__main__._COMMANDS),
]


@pytest.fixture(scope="session")
def latin1(tmp_path_factory) -> dict[str, str]:
    """The environment of an ISO-8859-1 locale, which is made here; or only of its streams."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef"):
        command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "latin1")]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return {"LOCPATH": str(folder), "LC_ALL": "latin1"}
    return {"PYTHONIOENCODING": "iso-8859-1"}


def run(
    words: Sequence[str], environment: dict[str, str], cwd: Path, **streams: object
) -> subprocess.CompletedProcess[bytes]:
    """Run a console script by its name, as the installed one does."""
    code = f"import sys; from {SCRIPTS[words[0]]} import cli; sys.exit(cli())"
    return subprocess.run(
        [sys.executable, "-c", code, *words[1:]],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=1000,
        check=False,
        **streams,  # type: ignore[call-overload]
    )


def closing(*descriptors: int) -> Callable[[], None]:
    """Return what closes streams in a new process before its program begins."""
    return lambda: [os.close(descriptor) for descriptor in descriptors] and None


def to_nobody(words: Sequence[str], environment: dict[str, str], cwd: Path) -> int:
    """Run a command whose stdout nobody reads, without stdin and stderr; return its code."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(words, environment, cwd, stdout=writing, preexec_fn=closing(0, 2))
    finally:
        os.close(writing)
    return done.returncode


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_the_help_of_every_command(words, latin1, tmp_path):
    assert to_nobody([*words, "--help"], latin1, tmp_path) == 0
    with open("/dev/full", "wb") as full:
        done = run([*words, "--help"], latin1, tmp_path, stdout=full, stderr=subprocess.PIPE)
    program = f"{words[0]}: error: ".encode()
    assert (done.returncode, done.stderr) == (
        1, program + b"the output could not be written (No space left on device)\n",
    )  # fmt: skip


@pytest.fixture
def finished(tmp_path) -> Path:
    """A finished run with signs that Latin-1 lacks in its configuration and its log."""
    values = {"method": {"name": "rebias"}, "data": {"root": "/data/\u03c1"}}
    made = write_run(tmp_path / "runs/first", values, {"unbiased": {"f": 800, "g0": 300}})
    (made / "state.json").write_text('{"status": "finished", "name": "first"}')
    (made / "logs").mkdir()
    (made / "logs/rank0.log").write_text("kernel radius \u03c3 \u2192 0.5\n" * 10_000)
    return made


PRINTING = [
    ["rebias-report", "{run}", "--out", "{out}"],
    ["rebias-evaluate", str(RUN), "--data.root", str(SHARDS)],
    ["rebias-train", "--print-config"],
    ["rebias-train", "--list-configs"],
    ["rebias-sweep", "biased_mnist/sweeps/demo", "--dry-run"],
    ["rebias-launch", "list", "--runs-dir", "{run}/.."],
    ["rebias-launch", "status", "first", "--runs-dir", "{run}/.."],
    ["rebias-launch", "logs", "first", "--runs-dir", "{run}/.."],
    ["rebias-shards", "inspect", f"{SHARDS}/train"],
    ["rebias-shards", "verify", f"{SHARDS}"],
]


@pytest.mark.parametrize("words", PRINTING, ids=lambda words: "-".join(words[:2]))
def test_commands_print_in_latin_1_and_do_their_work_for_nobody(words, finished, latin1, tmp_path):
    words = [word.format(run=finished, out=tmp_path / "report") for word in words]
    done = run(words, latin1, tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout
    before = sorted(tmp_path.rglob("*.html"))
    for path in before:
        path.unlink()
    assert to_nobody(words, latin1, tmp_path) == 0
    assert sorted(tmp_path.rglob("*.html")) == before


def test_the_help_is_silent_without_a_reader(latin1, tmp_path):
    code = f"import sys; from {SCRIPTS['rebias-train']} import cli; sys.exit(cli())"
    line = f'set -o pipefail; "{sys.executable}" -c "$0" --help 2>&- | head -1'
    done = subprocess.run(
        ["bash", "-c", line, code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **latin1},
        capture_output=True,
        timeout=1000,
        check=False,
    )
    assert (done.returncode, done.stdout.count(b"\n"), done.stderr) == (0, 1, b"")


def test_a_stream_that_something_else_has_made_non_blocking(tmp_path):
    """A full pipe that takes nothing more is waited for, and nothing is lost."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = (
        "from data_shards.system.streams import run_command\n"
        "def command():\n    print('x' * 300_000)\n    return 0\n"
        "raise SystemExit(run_command('test', command))"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=writing
    )
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert len(pipe.read()) == 300_001
    assert started.wait(1000) == 0


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    code = (
        "import sys\nfrom data_shards.system.streams import run_command\n"
        "def command():\n"
        "    with open(sys.argv[1], 'wb') as file:\n"
        "        import os; os.write(2, b'of a library in C')\n"
        "        return int(file.fileno() < 3)\n"
        "raise SystemExit(run_command('test', command))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=closing(0, 1, 2),
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow
def test_the_launcher_without_stdin_and_stderr_finishes_its_run(small_run, tmp_path, latin1):
    config = write_config(tmp_path / "config.yaml", {**small_run, "max_steps": 2})
    closing = ["sh", "-c", 'exec "$@" 2>&- <&-', "sh"]
    launcher = started("local", config, "--name", "a", cwd=tmp_path, before=closing, **latin1)
    ended = launcher.end()
    assert (ended.code, ended.left) == (0, []), ended.out
    assert "Traceback" not in ended.out
    assert state(tmp_path / "runs/a")["status"] == "finished"
