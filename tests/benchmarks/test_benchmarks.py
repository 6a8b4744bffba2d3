"""The benchmarks run, and records are compared only where a comparison means something."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import compare, read_record
from tests import ROOT


def benchmarks(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000)


def record(folder: Path, name: str, **changes) -> str:
    times, theirs = (
        {"smallest": 0.9, "median": changes.pop(name, 1.0), "largest": 2.0, "repeats": 3}
        for name in ("median", "baseline")
    )
    table = {
        "title": "T",
        "columns": ["N", "ours", "usual", "MB"],
        "baselines": ["usual"],
        "rows": [["8", times, theirs, {"megabytes": changes.pop("megabytes", 10.0)}]],
    }
    content = {
        "format": 1,
        "benchmark": "step",
        "machine": {"processor": "P", "cores": 2, "threads": 1, "commit": name},
        "options": {"width": 512},
        "tables": [table],
    }
    for key, value in changes.items():
        content["machine" if key in content["machine"] else key] = (
            {**content["machine"], key: value} if key in content["machine"] else value
        )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    "name",
    [
        *("median", "optimizer", "memory_format", "convert", "checkpoint"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("coupled", "step", "hsic", "communication", "scaling", "scaling_model"),
                *("loader", "startup", "step_memory"),
            )
        ),
    ],
)
def test_each_runs_in_small(name):
    done = benchmarks(name, "--quick")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "commit " in done.stdout
    assert done.stdout.count("|---") > 3


def test_the_plain_code_of_a_coupled_term_has_the_value_and_gradient_of_the_method():
    import torch

    from benchmarks.coupled import PLAIN, by_the_formula, by_the_method, samples

    for name in PLAIN:
        views = 2 if name in ("softcon", "biascon") else 1
        case = samples(40, 6, views)
        ours, plain = by_the_method(name, views, *case), by_the_formula(name, *case)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_scaling_model_counts_the_forwards_of_a_step(micro_batches):
    import torch

    from benchmarks.scaling_model import forwards
    from benchmarks.step import EQUAL, RADII, batches_of, build_game

    game = build_game(EQUAL, 4 * micro_batches, micro_batches)
    seen = {"f": [], "g0": []}
    for player in (game.f, *game.gs):
        player.network.register_forward_hook(
            lambda *_, name=player.name: seen[name].append(torch.is_grad_enabled())
        )
    game.step(batches_of(4 * micro_batches, micro_batches, 8), 0, RADII)
    of_f, of_g, with_backward = forwards(micro_batches)
    assert [grad for grad in seen["f"] if not grad] == [False] * of_f
    assert [grad for grad in seen["g0"] if not grad] == [False] * of_g
    assert sum(seen["f"]) == sum(seen["g0"]) == with_backward


def test_comparison(tmp_path):
    before = record(tmp_path, "before")
    for median, verdict, code in ((1.0, "", 0), (1.5, "worse", 1), (0.5, "better", 0)):
        done = benchmarks("compare", before, record(tmp_path, "after", median=median))
        assert done.returncode == code, done.stderr
        row = (
            f"| T | 8 | ours | 1000 | {1000 * median:g} | {median:.2f} | {median:.2f} | {verdict} |"
        )
        assert row in done.stdout


def test_memory_is_compared_and_a_slow_machine_is_no_regression(tmp_path):
    before = record(tmp_path, "before")
    done = benchmarks("compare", before, record(tmp_path, "more", megabytes=20.0))
    assert done.returncode == 1
    assert "| T | 8 | MB | 10 | 20 | 2.00 | 2.00 | worse |" in done.stdout
    slow = record(tmp_path, "slow", median=2.0, baseline=2.0, megabytes=20.0)
    done = benchmarks("compare", before, slow)
    assert "| T | 8 | ours | 1000 | 2000 | 2.00 | 1.00 |  |" in done.stdout
    assert "| T | 8 | usual | 1000 | 2000 | 2.00 |  | baseline |" in done.stdout
    slow = record(tmp_path, "slow", median=2.0, baseline=2.0)
    assert benchmarks("compare", before, slow).returncode == 0


def test_every_record_that_is_kept_can_be_read_and_compared():
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        assert read_record(path).benchmark == path.stem
        if path.stem != "communication":  # it counts, and measures nothing
            assert compare(path, path) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processor": "Q"}, "different machines (processor: P and Q)"),
        ({"threads": 2}, "different machines (threads: 1 and 2)"),
        ({"benchmark": "hsic"}, "of the benchmark step"),
        ({"format": 2}, "format 2; this version reads 1"),
        ({"options": {"width": 64}}, "different options (width: 512 and 64)"),
        ({"tables": []}, "have no measurement in common"),
        ({"tables": None}, "not a record of a benchmark (tables: "),
        ({"machine": 3}, "not a record of a benchmark (machine: "),
        ({"median": 0.0}, "not a record of a benchmark (tables.0.rows.0: "),
        ({"median": float("nan")}, "not a record of a benchmark (tables.0.rows.0: "),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, changes, words):
    done = benchmarks("compare", record(tmp_path, "a"), record(tmp_path, "b", **changes))
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "slower" not in done.stdout


def test_unknown_names_and_files(tmp_path):
    done = benchmarks("medan")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no benchmark 'medan'; there are checkpoint, ")
    assert done.stderr.count("\n") == 1
    (tmp_path / "junk.json").write_text("[]")
    for path, words in ((tmp_path / "none.json", "cannot be read"),
                        (tmp_path / "junk.json", "not a record")):  # fmt: skip
        done = benchmarks("compare", str(path), str(path))
        assert done.returncode == 2
        assert words in done.stderr


def test_the_records_are_drawn_and_what_is_missing_is_named(tmp_path):
    picture = tmp_path / "speed.png"
    done = benchmarks("plot", "--out", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    for source in (ROOT / "benchmarks/results").glob("*.json"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    content = json.loads((tmp_path / "hsic.json").read_text())
    content["tables"][0]["rows"] = content["tables"][0]["rows"][:3]
    (tmp_path / "hsic.json").write_text(json.dumps(content))
    picture.unlink()
    for words in ("hsic.json: has no 'trace / ours' for N 4096; run the", "cannot be read"):
        done = benchmarks("plot", "--results", str(tmp_path), "--out", str(picture))
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not picture.exists()
        (tmp_path / "hsic.json").unlink(missing_ok=True)
