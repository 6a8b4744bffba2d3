"""The archive of runs: a report of it has the figures of a report of the runs themselves."""

import csv
import json
import re
import shutil

import pytest

import rebias_dist
from rebias_dist.commands import report
from rebias_dist.errors import ConfigError
from rebias_dist.reporting.frame import results
from tests.commands.test_report import method, write_options, write_run


@pytest.fixture
def runs(tmp_path):
    for seed in range(3):
        counts = {"biased": {"f": 900, "g0": 990}, "unbiased": {"f": 500 + seed, "g0": 100}}
        paths = {
            "data": {"source": "/somewhere/mnist", "aligned": "/somewhere/rule.csv"},
            "f": {"name": "simple_convnet", "pretrained": "/somewhere/a:best"},
            "g": [{"name": "simple_convnet", "checkpoint": "/somewhere/biased"}],
        }
        values = method("rebias", seed=seed, runs_dir="/somewhere/runs", **paths)
        folder = write_run(tmp_path / f"runs/rebias-{seed}", values, counts)
        lines = [{"step": s, "f/ce": 2 / s, "g0/ce": 1 / s, "speed/x": 7} for s in range(1, 5001)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/weights").write_bytes(bytes(100_000))
    return tmp_path / "runs"


def figures(folder, out):
    assert report.main([str(folder), "--out", str(out)]) == 0
    with (out / "results-settings.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_report_of_the_archive_is_that_of_the_runs(runs, tmp_path):
    assert report.main([str(runs), "--archive", str(tmp_path / "kept")]) == 0
    assert figures(tmp_path / "kept", tmp_path / "a") == figures(runs, tmp_path / "b")
    assert "Training; a line a seed." in (tmp_path / "a/results.html").read_text()


def test_an_archive_is_small_and_names_no_folder_of_the_machine(runs, tmp_path):
    report.main([str(runs), "--archive", str(tmp_path / "kept")])
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert len(files) == 3 * 4
    assert sum(path.stat().st_size for path in files) < 3 * 20_000
    assert not any("/somewhere" in path.read_text() for path in files)


def test_runs_without_results_are_named(runs, tmp_path, capsys):
    (runs / "rebias-1/results.json").unlink()
    assert report.main([str(runs), "--archive", str(tmp_path / "kept")]) == 0
    assert "left out: rebias-1: results.json: No such file" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["rebias-0", "rebias-2"]


def test_nothing_is_overwritten(runs, tmp_path):
    (tmp_path / "kept/rebias-2").mkdir(parents=True)
    with pytest.raises(ConfigError, match="rebias-2 exists; remove it, or give another folder"):
        report.main([str(runs), "--archive", str(tmp_path / "kept")])
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["rebias-2"]
    again = shutil.copytree(runs / "rebias-1", tmp_path / "more/rebias-1")
    with pytest.raises(ConfigError, match="called rebias-1; archive them into two folders"):
        report.main([str(runs), str(again), "--archive", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"options": {"\\ud800": "\\udfff", "\\u001b[31m": "\\u001b[0m", "rho": 0.9}}',
        '{"options": {"rho": -1, "seed": -1, "z": 1e300}}',
        '{"options": [1]}',
    ],
)
def test_options_that_anyone_may_have_written_do_no_harm(tmp_path, text):
    for seed in (0, 1):
        values = method("rebias", seed=seed, data={"root": "shards"}, runs_dir="runs")
        folder = write_run(tmp_path / f"runs/{seed}", values, COUNTS)
    (folder / "shards.json").write_text(text)
    known = results(tmp_path / "runs").drop_duplicates("run")["rho"].dropna()
    assert list(known) == [0.9] * ("0.9" in text)
    figures(tmp_path / "runs", tmp_path / "a")
    assert "\x1b" not in (tmp_path / "a/results.html").read_text()


COUNTS = {"biased": {"f": 900, "g0": 990}, "unbiased": {"f": 500, "g0": 100}}


def written(folder, out, prefix):
    """Return all that a report writes but pictures; paths below ``prefix`` in their short form."""
    assert report.main([str(folder), "--out", str(out)]) == 0
    texts = {}
    for path in out.iterdir():
        if path.suffix in (".csv", ".md", ".html"):
            text = path.read_text(encoding="utf-8")
            text = re.sub("<svg.*?</svg>", "", text, flags=re.DOTALL)
            texts[path.name] = text.replace(f"{prefix}/", "")
    return texts


def test_a_report_of_the_archive_knows_the_shards_of_data_root(tmp_path, monkeypatch):
    """Whatever has become of them; and a folder of the same name elsewhere has no say."""
    made = {"image_size": 28, "confusing_colours": 9, "archives": ["a", "b"]}
    runs = tmp_path / "runs"
    data = {}
    for rho in (0.9, 0.99):
        for seed in (0, 1):
            name = f"shards{rho}-{seed}"
            root = write_options(tmp_path / name, rho=rho, seed=seed, **made)
            data[name] = {"root": root, "selection": "none"}
    for resize in (64, 224):
        root = write_options(tmp_path / f"birds{resize}", resize=resize, seed=0)
        data[f"birds{resize}"] = {"dataset": "birds", "root": root, "test_splits": ["unbiased"]}
    for name in ("one", "two"):  # nothing tells these settings apart but their folders
        data[name] = {"root": f"{name}/at/unknown"}
    for name, of_data in data.items():
        values = method("rebias", data=of_data, runs_dir=str(runs))
        write_run(runs / name, values, COUNTS)
    assert report.main([str(runs), "--archive", str(tmp_path / "kept")]) == 0
    of_runs = written(runs, tmp_path / "a", tmp_path)
    assert len(of_runs) == 4
    assert "| ρ\u00a00.99 | ρ\u00a00.9 | ρ unknown |" in of_runs["results.md"]
    for root in tmp_path.glob("*/train"):
        shutil.rmtree(root.parent)
    (tmp_path / "elsewhere").mkdir()
    write_options(tmp_path / "elsewhere/shards0.9-0", rho=0.5, seed=7)
    write_options(tmp_path / "elsewhere/one/at/unknown", rho=0.5, seed=7)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert written(tmp_path / "kept", tmp_path / "b", tmp_path) == of_runs


def test_an_archive_is_refused_where_weights_are_needed(runs, tmp_path):
    report.main([str(runs), "--archive", str(tmp_path / "kept")])
    with pytest.raises(ConfigError, match="rebias-1: it has results but no checkpoints, as an ar"):
        rebias_dist.load(tmp_path / "kept/rebias-1")
