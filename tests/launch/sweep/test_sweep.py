"""Sweeps: their cells, their refusals, and how real processes start, fail and stop."""

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from launch.commands import sweep
from launch.sweep.grid import Cell, plan_cells, read_sweep
from launch.sweep.runner import CellRunner, run_cells
from rebias_dist.commands import report
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import configs_folder, list_configs, to_yaml, validate
from rebias_dist.errors import ConfigError
from tests import ROOT
from tests.faults.processes import Started, listening, outliving
from tests.launch.launched import state, wait_until


def written(folder: Path, **values: object) -> str:
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({"name": "s", "config": "biased_mnist/demo", **values}, sort_keys=False)
    )
    return str(path)


def planned(folder: Path, **values: object) -> list[Cell]:
    path = written(folder, **values)
    return plan_cells(read_sweep(path), path, None, str(folder / "runs"))


def test_cells_are_the_product_with_the_zipped_keys_varying_together(tmp_path):
    cells = planned(
        tmp_path,
        grid={"method.name": ["vanilla", "rebias"], "data.rho": [0.9, 0.95]},
        zip={"seed": [4, 5, 6], "data.seed": [7, 8, 9]},
        set={"epochs": 3},
    )
    found = [
        (c.config.method.name, c.config.data.rho, c.config.seed, c.config.data.seed) for c in cells
    ]
    assert found == [
        (method, rho, seed, seed + 3)
        for method in ("vanilla", "rebias")
        for rho in (0.9, 0.95)
        for seed in (4, 5, 6)
    ]
    assert {c.config.epochs for c in cells} == {3}
    assert cells[0].name == "s-vanilla-rho0.9-seed4"
    assert len({c.name for c in cells}) == len(cells)
    assert all(c.config.name == c.name for c in cells)


def test_settings_of_some_cells(tmp_path):
    cells = planned(
        tmp_path,
        grid={"method.name": ["rubi", "learned_mixin"]},
        where={"method.name": {"learned_mixin": {"method.g_pretrain_epochs": 5}}},
    )
    assert [c.config.method.g_pretrain_epochs for c in cells] == [0, 5]


def test_the_values_of_where_are_those_of_yaml(tmp_path):
    cells = planned(
        tmp_path,
        grid={"compile": [False, True], "data.rho": [0.9, 0.99]},
        where={"compile": {"true": {"epochs": 3}}, "data.rho": {"0.99": {"global_batch": 32}}},
    )
    assert [(c.config.epochs, c.config.global_batch) for c in cells] == [
        (8, 64), (8, 32), (3, 64), (3, 32)
    ]  # fmt: skip


def test_a_setting_of_the_command_line_counts_more_than_where(tmp_path):
    path = written(
        tmp_path,
        grid={"method.name": ["rubi", "learned_mixin"]},
        where={"method.name": {"learned_mixin": {"method.g_pretrain_epochs": 5, "epochs": 3}}},
    )
    cells = plan_cells(read_sweep(path, {"method.g_pretrain_epochs": "1"}), path)
    assert [c.config.method.g_pretrain_epochs for c in cells] == [1, 1]
    assert [c.config.epochs for c in cells] == [8, 3]


def test_the_command_is_an_argument_list_and_resolves_to_the_cell(tmp_path):
    (cell,) = planned(
        tmp_path,
        ranks=2,
        set={"data.source": "a folder; with 'signs' $HOME", "data.test_splits": ["biased", "rho0"]},
        zip={"seed": [3]},
    )
    arguments = cell.command[cell.command.index("rebias_dist.train") + 1 :]
    assert parse_train(arguments).config == cell.config
    assert cell.config.data.source == "a folder; with 'signs' $HOME"
    assert "--nproc_per_node=2" in cell.command


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"grid": {"methd.name": ["rebias"]}}, "--methd.name"),
        ({"grid": {"method.name": ["rebias", "mixin"]}}, "cell s-mixin: method.name"),
        ({"grid": {"optimizer.lr": [1e-3, -1.0]}}, "cell s-lr-1.0: optimizer.lr"),
        ({"grid": {"seed": []}}, "grid.seed"),
        ({"grid": {"data.source": [None]}}, "grid.data.source"),
        ({"zip": {"seed": [1, 2], "data.seed": [1]}}, "zip"),
        ({"grid": {"seed": [1]}, "zip": {"seed": [2]}}, "seed"),
        ({"grid": {"seed": [1]}, "set": {"seed": 2}}, "seed"),
        ({"set": {"name": "mine"}}, "name"),
        ({"grid": {"data.source": ["a b", "a/b"]}}, "two cells are named s-a_b"),
        ({"where": {"method.name": {"rubi": {"seed": 1}}}}, "where.method.name.rubi"),
        ({"grid": {"seed": [1]}, "where": {"seed": {"1": {"seed": 2}}}}, "where.seed.1.seed"),
        (
            {
                "grid": {"method.name": ["rubi"], "seed": [0, 1]},
                "where": {"method.name": {"rubi": {"epochs": 3}}, "seed": {"1": {"epochs": 5}}},
            },
            "epochs of the cell s-rubi-seed1 is 3 by method.name and 5 by seed; keep one",
        ),
        ({"ranks": 9}, "micro_batch"),
        ({"ranks": 0}, "ranks"),
        ({"name": "../up"}, "name"),
        ({"gird": {}}, "gird: no such key; did you mean 'grid'?"),
        ({"grid": {"data.rhoo": [0.9]}}, "no such argument; did you mean --data.rho?"),
        ({"grid": None}, "grid: null is not a value here"),
        ({"set": {"seed": None}}, "set.seed: null is not a value here"),
        ({"where": {"seed": {"1": [0] * 200}}}, "where.seed.1: [0, 0, 0"),
        ({"config": "biased_mnist/dmeo"}, "did you mean 'biased_mnist/demo'"),
    ],
)
def test_faults_are_found_before_any_cell_starts(tmp_path, values, named, capsys):
    with pytest.raises((ConfigError, SystemExit)) as stopped:
        sweep.main([written(tmp_path, **values), "--runs-dir", str(tmp_path / "runs")])
    if isinstance(stopped.value, SystemExit):  # the parser has already printed its line
        assert stopped.value.code == 2
        line = capsys.readouterr().err.strip()
    else:
        assert stopped.value.exit_code == 2
        line = str(stopped.value)
    assert named in line
    assert "\n" not in line
    assert len(line) < 500
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("config: biased_mnist/demo\ngrid: {seed: [1]}", "name: is missing; add this key"),
        ("nmae: a\nconfig: biased_mnist/demo", "nmae: no such key; did you mean 'name'?"),
        ((ROOT / "configs/biased_mnist/demo.yaml").read_text(), "method: no such key; known: name"),
        ("", "name: is missing"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_plain_line(tmp_path, text, named):
    path = tmp_path / "no.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        sweep.main([str(path), "--dry-run"])
    assert str(refused.value).startswith(f"{path}: {named}")


def test_a_folder_with_another_configuration_is_refused(tmp_path):
    (cell,) = planned(tmp_path, grid={"seed": [1]})
    cell.folder.mkdir(parents=True)
    other = validate({**cell.config.model_dump(), "epochs": 99})
    (cell.folder / "config.yaml").write_text(to_yaml(other))
    with pytest.raises(ConfigError, match="epochs: 99 → "):
        planned(tmp_path, grid={"seed": [1]})
    (cell.folder / "config.yaml").write_text(to_yaml(cell.config))
    assert planned(tmp_path, grid={"seed": [1]}) == [cell]


def test_dry_run_prints_every_command_and_starts_nothing(tmp_path, capsys):
    path = written(tmp_path, grid={"seed": [1, 2]})
    assert (
        sweep.main([path, "--dry-run", "--ranks", "4", "--runs-dir", str(tmp_path / "runs")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# s-seed1: to run",
        "# s-seed2: to run",
    ]
    assert sum("--nproc_per_node=4" in line for line in lines) == 2
    assert not (tmp_path / "runs").exists()


def test_shipped_sweeps_are_valid_and_are_not_listed_as_configurations():
    shipped = sorted(configs_folder().glob("*/sweeps/*.yaml"))
    assert {path.stem for path in shipped} == {
        *("demo", "reduced_schedule", "results", "table", "published", "flac"),
    }
    for path in shipped:
        found = read_sweep(str(path))
        cells = plan_cells(found, path.name, None, None)
        counts = {
            **{"demo": 3, "results": 63, "reduced": 36, "table": 120, "imagenet9-table": 15},
            **{"published": 180, "flac": 12},
        }
        assert len(cells) == counts[found.name]
    assert not [name for name, _ in list_configs() if "sweep" in name]


class ScriptCell(Cell):
    """A cell whose process is a few lines of Python instead of a training."""

    @property
    def bound_command(self) -> list[str]:
        return [sys.executable, "-c", self.arguments[0], str(self.folder)]


FINISH = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file: file.write("x")
print("threads", os.environ["OMP_NUM_THREADS"])
(folder / "state.json").write_text('{"status": "finished"}')
"""
FAIL = """
print('\\x1b[31mearly\\x1b[0m\\nthe reason')
raise SystemExit(3)
"""
LIE = "print('exit 0, but nothing was finished')"


def script_cell(folder: Path, name: str, script: str) -> ScriptCell:
    config = validate({"name": name, "runs_dir": str(folder)})
    return ScriptCell(name, [script], config, ranks=1)


@pytest.fixture
def signals():
    """Restore the signal handlers that a sweep replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_failures_do_not_stop_the_sweep_and_finished_cells_run_once(tmp_path, capsys):
    scripts = {"bad": FAIL, "lie": LIE, "good": FINISH}
    cells = [script_cell(tmp_path, name, script) for name, script in scripts.items()]
    assert run_cells(cells, "again") == 1
    shown = capsys.readouterr()
    assert "exit code 3" in shown.out
    assert "    early\n    the reason\n[2/3]" in shown.out
    failed = shown.err.splitlines()
    assert [line.split(":")[:2] for line in failed] == [["failed", " bad"], ["failed", " lie"]]
    assert (tmp_path / "good/starts").read_text() == "x"
    assert "threads" in (tmp_path / ".sweeps/good.log").read_text()

    assert run_cells([cells[2]], "again") == 0
    assert "finished before" in capsys.readouterr().out
    assert (tmp_path / "good/starts").read_text() == "x"


# A sweep of two cells. Each counts the SIGINTs that reach it, and is slow to save.
STOPPABLE = """
import sys, time, signal, pathlib
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
(folder / "ready").touch()
end = time.monotonic() + 1000
while not seen and time.monotonic() < end: time.sleep(0.01)
time.sleep(1.0)
(folder / "seen").write_text(str(len(seen)))
raise SystemExit(75)
"""
SWEEP_OF_TWO = """
import sys
from pathlib import Path
from rebias_dist.commands.parser import run_cli
from tests.launch.sweep.test_sweep import STOPPABLE, run_cells, script_cell
cells = [script_cell(Path(sys.argv[1]), name, STOPPABLE) for name in ("one", "two")]
run_cli("rebias-sweep", lambda: run_cells(cells, "the same command"))
"""


def run_on_terminal(code: str, folder: Path) -> tuple[int, int]:
    """Run Python code with its own terminal; return the process and the terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code, str(folder)])
    return child, terminal


def end_of(child: int, terminal: int) -> tuple[int, bytes]:
    """Wait for the end of a process; return its exit code and all that its terminal has shown."""
    output = b""
    with suppress(OSError):  # the end of file of a terminal
        while piece := os.read(terminal, 4096):
            output += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_cell_once_and_the_sweep_says_how_to_go_on(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP_OF_TWO, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until((tmp_path / "one/ready").exists, "the first cell")
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(number)  # the impatient second one must not cut the save short
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 75
    assert (tmp_path / "one/seen").read_text() == "1"
    assert not (tmp_path / "two").exists()
    assert "stopped" in out
    assert err == "rebias-sweep: stopped; the same command goes on from here: the same command\n"


def test_ctrl_c_of_a_terminal_reaches_the_cell_once(tmp_path):
    child, terminal = run_on_terminal(SWEEP_OF_TWO, tmp_path)
    wait_until((tmp_path / "one/ready").exists, "the first cell")
    os.write(terminal, b"\x03")
    code, output = end_of(child, terminal)
    assert code == 75
    assert (tmp_path / "one/seen").read_text() == "1"
    assert b"stopped in" in output


def test_a_terminal_shows_the_last_line_of_the_cell(tmp_path):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from launch.sweep.runner import CellRunner
        cell = [sys.executable, "-uc", "import time; print('step 1\\\\rstep 2'); time.sleep(2.5)"]
        CellRunner().run(cell, 1, Path(sys.argv[1], "log"), "[1/1] cell")
    """)
    code, output = end_of(*run_on_terminal(script, tmp_path))
    assert code == 0
    assert b"step 2" in output
    assert b"step 1" not in output
    assert b"[1/1] cell finished in" in output


def test_a_log_is_appended_to_and_only_the_new_part_is_shown(tmp_path, capsys):
    log = tmp_path / "log"
    for word in ("first", "second"):
        script = f"print('{word}'); raise SystemExit(1)"
        assert CellRunner().run([sys.executable, "-c", script], 1, log, "cell") == 1
    assert log.read_text() == "first\nsecond\n"
    assert capsys.readouterr().out.count("first") == 1


def test_the_warnings_of_a_cell_are_shown_at_its_end(tmp_path, capsys):
    script = "for i in range({}): print('2026-01-31 12:00:00,123 WARNING step', i, '\\x1b[2Jsaid')"
    for count in (0, 2, 20):
        command = [sys.executable, "-c", script.format(count)]
        assert CellRunner().run(command, 1, tmp_path / "log", "cell") == 0
        first, *shown = capsys.readouterr().out.splitlines()
        assert first.startswith("cell finished in")
        expected = [f"    warning: step {i} said" for i in range(min(count, 15))]
        assert shown == expected + (["    warning: and 5 more"] if count == 20 else [])


SMALL = {
    "ranks": 2,
    "grid": {"method.name": ["vanilla"]},
    "set": {"data.image_size": 8, "f.width": 0.25, "global_batch": 32, "micro_batch": 8},
}


def sweep_process(path: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.commands.sweep", path, "--runs-dir", str(folder / "runs")],
        cwd=ROOT,
        env={**os.environ, "REBIAS_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def status(folder: Path) -> tuple[str, int]:
    """Return the status of a run and the number of its steps."""
    found = state(folder)
    return found.get("status", "absent"), found.get("step", 0)


def test_a_real_run_on_two_ranks_is_trained_and_reported(tmp_path, capsys):
    path = written(tmp_path, **{**SMALL, "set": {**SMALL["set"], "max_steps": 3}})
    process = sweep_process(path, tmp_path)
    out, err = process.communicate(timeout=1000)
    assert (process.returncode, err) == (0, ""), out
    assert status(tmp_path / "runs/s-vanilla") == ("finished", 3)
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert row_count(capsys.readouterr().out, "vanilla") == 2  # best and last of f
    assert (tmp_path / "out/results.png").stat().st_size > 0


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_sweep_leaves_nothing_and_no_cell_can_be_reached_from_outside(tmp_path, ranks):
    values = {**SMALL, "ranks": ranks, "set": {**SMALL["set"], "epochs": 1000}}
    command = [sys.executable, "-m", "launch.commands.sweep", written(tmp_path, **values)]
    command += ["--runs-dir", str(tmp_path / "runs")]
    folder, seen = tmp_path / "runs/s-vanilla", 0
    for _ in range(2):  # the same command goes on where the killed one was
        run = Started(command, tmp_path, PYTHONPATH=str(ROOT))
        wait_until(lambda seen=seen: status(folder)[1] > seen, f"step {seen + 1}", run)
        found = listening(outliving(run.mark))
        assert all(address.startswith("127.") for address in found), found
        # torchrun's store, and each rank.
        assert len(found) >= ranks + 1 if ranks > 1 else found == []
        seen = status(folder)[1]
        run.process.kill()
        ended = run.end()
        assert (ended.code, ended.left) == (-signal.SIGKILL, []), ended.left


def row_count(text: str, label: str) -> int:
    return sum(line.startswith(label) for line in text.splitlines())


@pytest.mark.slow
def test_a_real_run_that_was_stopped_goes_on_by_the_same_command(tmp_path):
    path = written(tmp_path, **{**SMALL, "set": {**SMALL["set"], "epochs": 2}})
    process = sweep_process(path, tmp_path)
    folder = tmp_path / "runs/s-vanilla"
    wait_until(lambda: status(folder)[1] >= 5, "step 5")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=1000)
    assert process.returncode == 75
    stopped, step = status(folder)
    assert stopped == "interrupted"
    assert step >= 5

    process = sweep_process(path, tmp_path)
    out, err = process.communicate(timeout=1000)
    assert (process.returncode, err) == (0, ""), out
    assert status(folder)[0] == "finished"
    # Every step was made once: none was lost, none repeated.
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    steps = [entry["step"] for entry in entries if "f/loss" in entry]  # evaluations have none
    assert steps == list(range(1, status(folder)[1] + 1))
    print(f"stopped at step {step} of {len(steps)}")
