"""What a report computes and writes, against libraries, brute force and hostile input."""

import csv
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import markdown
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from rebias_dist.commands import report
from rebias_dist.config.files import read_config_file, to_yaml
from rebias_dist.evaluation.corruptions import BENCHMARK
from rebias_dist.reporting import plots
from rebias_dist.reporting.comparison import leads
from rebias_dist.reporting.metrics import POINTS, read_curves
from rebias_dist.reporting.published import published
from rebias_dist.reporting.runs import plain, read_run
from rebias_dist.reporting.tables import corruption_table, leads_table, measures_table
from tests.commands.test_report import compared, method, write_run

HOSTILE = "<script>alert(1)</script>$\\frac{\x1b[31m&'\"\n{{7*7}}"


class Page(HTMLParser):
    """What a page consists of: its elements, their addresses, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        self.text += data


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("counts", [(610, 655, 700), (200, 900), (500, 500, 500, 510)])
def test_the_interval_over_seeds_is_students(tmp_path, counts):
    for seed, n in enumerate(counts):
        write_run(tmp_path / str(seed), method("vanilla", seed=seed), {"unbiased": {"f": n}})
    (runs,), _ = compared(*sorted(tmp_path.iterdir()))
    figure = runs.figure(runs.groups[0], "last", "unbiased", "f")
    values = np.array(counts) / 1000
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    assert (figure.low, figure.high) == pytest.approx((max(low, 0), min(high, 1)))


@pytest.mark.parametrize(("correct", "samples"), [(0, 10), (64, 100), (1000, 1000), (1, 3)])
def test_the_interval_of_one_seed_is_wilsons(tmp_path, correct, samples):
    write_run(tmp_path / "a", method("vanilla"), {"unbiased": {"f": correct}}, samples=samples)
    (runs,), _ = compared(tmp_path / "a")
    figure = runs.figure(runs.groups[0], "last", "unbiased", "f")
    expected = scipy.stats.binomtest(correct, samples).proportion_ci(method="wilson")
    assert (figure.low, figure.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_the_lead_over_vanilla_is_that_of_the_paired_test(tmp_path):
    counts = {"vanilla": [500, 540, 610, 700], "rebias": [560, 570, 690]}  # no rebias of seed 3
    for name, of_seed in counts.items():
        for seed, n in enumerate(of_seed):
            values = method(name, seed=seed)
            write_run(tmp_path / f"{name}{seed}", values, {"unbiased": {"f": n}})
    (runs,), _ = compared(*sorted(tmp_path.iterdir()))
    (found,) = leads(runs.frame, "unbiased").itertuples()
    ours, theirs = (np.array(counts[name][:3]) / 1000 for name in ("rebias", "vanilla"))
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.Index, len(found.values)) == ("rebias", 3)
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert (found.low, found.high) == pytest.approx((low, high))
    (row,) = leads_table(runs).body.to_numpy().tolist()
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
    assert row == ["rebias", "not told apart", f"{100 * found.mean:+.1f}", interval, "3"]


def test_runs_of_other_settings_are_not_compared_with_vanilla(tmp_path):
    write_run(tmp_path / "v", method("vanilla", epochs=4), {"unbiased": {"f": 500}})
    write_run(tmp_path / "r", method("rebias", epochs=5), {"unbiased": {"f": 600}})
    (runs,), _ = compared(tmp_path / "v", tmp_path / "r")
    assert leads(runs.frame, "unbiased").empty
    assert leads_table(runs) is None


# ---------------------------------------------------------------- curves


def test_curves_are_averages_of_stretches_and_pass_over_damage(tmp_path):
    rng = np.random.default_rng(0)
    steps, values = np.arange(1, 1001), rng.normal(size=1000)
    lines = [json.dumps({"step": int(s), "f/ce": v}) for s, v in zip(steps, values, strict=True)]
    damaged = ["{", "[1]", '{"step": "x", "f/ce": 1}', '{"step": 5, "f/ce": null}', "[" * 100_000]
    damaged += ['{"step": 5, "f/ce": NaN}', '{"step": true, "f/ce": 9}', "\x00\xff"]
    everything = [*lines[:500], *damaged, *lines[500:], lines[0][:10]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(everything))
    curves = read_curves(tmp_path, lambda tag: True)
    assert list(curves) == ["f/ce"]
    found_steps, found = curves["f/ce"]
    assert len(found) == POINTS
    stretches = np.array_split(values, POINTS)
    np.testing.assert_allclose(found, [part.mean() for part in stretches])
    assert found_steps == sorted(found_steps)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, capsys):
    write_run(tmp_path / "runs/a", method("vanilla"), {"unbiased": {"f": 500}})
    write_run(tmp_path / "runs/b", method("rebias"), {"unbiased": {"f": 500}})
    os.mkfifo(tmp_path / "runs/a/metrics.jsonl")
    (tmp_path / "runs/b/results.json").unlink()
    os.mkfifo(tmp_path / "runs/b/results.json")
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "is no regular file" in capsys.readouterr().out
    assert "no run has a metrics.jsonl" in page_of(tmp_path / "out/results.html").text


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a report on two data sets, with names and classes that mean harm."""
    root = tmp_path_factory.mktemp("hostile")
    counts = {"biased": {"f": 900, "g0": 990}, "unbiased": {"f": 500, "g0": 100}, HOSTILE: {"f": 7}}
    write_run(root / "runs/plain", method("rebias"), counts)
    (root / "runs/plain").rename(root / "runs/<img src=x onerror=alert(1)>")
    write_run(root / "runs/formula", method("rebias", seed=1), counts)
    (root / "runs/formula").rename(root / "runs" / '=HYPERLINK("http:\\\\x")')
    other = method("vanilla", data={"dataset": HOSTILE, "root": HOSTILE, "test_splits": ["val"]})
    other |= {"evaluate": {"monitor": "val"}, "f": {"name": HOSTILE}}
    write_run(root / "runs/other", other, {"val": {"f": 250}}, classes=4)
    results = json.loads((root / "runs/other/results.json").read_text())
    results["classes"] = [HOSTILE, "</svg>", "]]>", "#0072b2"]
    for checkpoint in results["checkpoints"].values():
        network = checkpoint["splits"]["val"]["networks"]["f"]
        network["confusion"] = [[250, 10, 0, 0], [0] * 4, [40, 0, 0, 700], [0] * 4]
    (root / "runs/other/results.json").write_text(json.dumps(results))
    assert report.main([str(root / "runs"), "--out", str(root / "out")]) == 0
    return root / "out"


def test_a_page_runs_nothing_and_loads_nothing(written):
    page = page_of(written / "results.html")
    assert "script" not in page.tags
    assert page.handlers == []
    assert {a for a in page.addresses if not a.startswith(("#", "data:image/"))} == set()
    assert "Content-Security-Policy" in (written / "results.html").read_text()
    shown = page.text
    assert plain(HOSTILE)[:20] in shown
    assert "<img src=x onerror=alert(1)>" in shown
    assert "{{7*7}}" in shown
    assert not [c for c in shown if not c.isprintable() and c not in "\n\xa0"]


def test_pictures_are_well_formed_whatever_is_written_in_them(written):
    pictures = sorted(written.glob("*.svg"))
    # Accuracy by split for both data sets, over ρ for Biased-MNIST.
    assert len([path for path in pictures if not path.stem.endswith("-classes")]) == 3
    for path in pictures:
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        assert path.with_suffix(".png").stat().st_size > 5_000


def test_pictures_of_single_settings_lie_beside_the_page_too(tmp_path):
    for name in ("vanilla", "rebias"):
        run = write_run(tmp_path / "runs" / name, method(name), {"unbiased": {"f": 500, "g0": 100}})
        curve = [json.dumps({"step": step, "f/ce": 1 / step}) for step in range(1, 9)]
        (run / "metrics.jsonl").write_text("\n".join(curve))
        results = json.loads((run / "results.json").read_text())
        for checkpoint in results["checkpoints"].values():
            for score in checkpoint["splits"]["unbiased"]["networks"].values():
                n = score["correct"] // 10
                confusion = [[n if i == j else 0 for j in range(10)] for i in range(10)]
                for label, row in enumerate(confusion):
                    row[label - 1] += 100 - n
                score["confusion"] = confusion
        (run / "results.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    of_settings = {f"results-{i}-{kind}" for i in (0, 1) for kind in ("training", "classes")}
    for ending in (".png", ".svg"):
        found = {path.stem for path in (tmp_path / "out").glob(f"*{ending}")}
        assert found == {"results", "results-rho", *of_settings}


def test_progress_is_the_mean_over_seeds_between_the_lowest_and_the_highest(tmp_path):
    rng = np.random.default_rng(0)
    accuracies = rng.uniform(size=(3, 4))
    steps = [10, 20, 30, 40]
    for seed, values in enumerate(accuracies):
        run = write_run(
            tmp_path / f"runs/{seed}", method("vanilla", seed=seed), {"unbiased": {"f": 5}}
        )
        lines = [
            json.dumps({"step": step, "selection/f_accuracy": value, "f/ce": 1.0})
            for step, value in zip(steps, values.tolist(), strict=True)
        ]
        (run / "metrics.jsonl").write_text("\n".join(lines[: 4 - (seed == 2)]))
    curves = [
        read_curves(folder, lambda tag: True)["selection/f_accuracy"]
        for folder in sorted((tmp_path / "runs").iterdir())
    ]
    band = plots.band_of(curves)
    assert band.index.tolist() == steps[:3]  # the third seed has no more
    for name, found in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        assert band[name].to_numpy() == pytest.approx(found(accuracies[:, :3], axis=0))
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/results-progress.png").exists()
    assert "Accuracy on selection during training" in page_of(tmp_path / "out/results.html").text


class Tables(HTMLParser):
    """The texts of the cells of each table, by rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.in_cell = tag in ("th", "td") or (self.in_cell and tag in ("small", "br"))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("th", "td", "table")

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data.strip(" \n")


def test_the_markdown_has_the_tables_of_the_page_whatever_is_written_in_them(written):
    text = (written / "results.md").read_text(encoding="utf-8")
    html = markdown.markdown(text, extensions=["tables", "fenced_code"])
    tables = Tables(html).tables
    on_page = Tables((written / "results.html").read_text(encoding="utf-8")).tables
    assert len(tables) >= 5
    assert [table for table in on_page if table in tables] == tables
    shown = Page(html)
    assert {"script", "a", "em"} & set(shown.tags) == set()
    pictures = [address for address in shown.addresses if address.endswith(".png")]
    assert pictures == shown.addresses
    assert len(pictures) == 3
    assert all((written / name).is_file() for name in pictures)
    assert "rebias-train --config" in shown.text
    assert not [c for c in text if not c.isprintable() and c not in "\n\xa0"]


def test_no_cell_of_the_csv_files_is_a_formula(written):
    for name in ("results.csv", "results-settings.csv"):
        with (written / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) > 5
        assert len({len(row) for row in rows}) == 1
        texts = [cell for row in rows for cell in row if cell]
        assert not [t for t in texts if t[0] in "=+@"]


def test_the_terminal_gets_no_control_characters(written, capsys):
    assert report.main([str(written.parent / "runs"), "--text"]) == 0
    assert not [c for c in capsys.readouterr().out if not c.isprintable() and c != "\n"]


def test_settings_csv_has_means_of_seeds_and_the_published_figures(written):
    with (written / "results-settings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ours = [r for r in rows if r["source"] == "here" and r["measure"] == "unbiased"]
    assert {(r["network"], r["checkpoint"], r["seeds"]) for r in ours} == {
        (net, checkpoint, "2") for net in ("f", "g0") for checkpoint in ("best", "last")
    }
    assert {float(r["accuracy"]) for r in ours} == {0.5, 0.1}
    theirs = [r for r in rows if r["source"] != "here"]
    assert len(theirs) == sum(published()["dataset"] == "biased_mnist")


# ---------------------------------------------------------------- runs that lack something


def test_an_empty_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "without figures: empty: no run here (config.yaml: No such file or directory)"
    assert not (tmp_path / "out").exists()


def test_a_finished_run_without_test_figures_says_so(tmp_path, capsys):
    write_run(tmp_path / "a", method("vanilla"), {})
    write_run(tmp_path / "b", method("rebias"), {"unbiased": {"f": 500, "g0": 100}})
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "a: finished without test figures" in capsys.readouterr().out
    page = page_of(tmp_path / "out/results.html").text
    assert page.count("finished without test figures") >= 2  # in its row, and in the list


@pytest.mark.parametrize(
    "confusion",
    [[[500, 500]], [[1, 0], [0, 1]], [[400, 100] + [0] * 8] + [[0] * 10] * 9],
    ids=["not square", "of two classes", "of other counts"],
)
def test_a_confusion_that_contradicts_the_counts_is_damage(tmp_path, confusion):
    write_run(tmp_path / "a", method("vanilla"), {"unbiased": {"f": 500}})
    results = json.loads((tmp_path / "a/results.json").read_text())
    for checkpoint in results["checkpoints"].values():
        checkpoint["splits"]["unbiased"]["networks"]["f"]["confusion"] = confusion
    (tmp_path / "a/results.json").write_text(json.dumps(results))
    problem = read_run(tmp_path / "a").problem
    assert problem is not None
    assert problem.startswith("damaged (results.json: ")


def test_measures_of_bias_are_those_of_a_slow_count(tmp_path):
    rng = np.random.default_rng(1)
    count = rng.integers(0, 5, (10, 10))
    count[3, 3] = 0
    correct = rng.integers(0, count + 1)
    labels = count.sum(axis=1)
    confusion = np.diag(correct.sum(axis=1))
    confusion[np.arange(10), (np.arange(10) + 1) % 10] += labels - correct.sum(axis=1)
    n, right = int(labels.sum()), int(correct.sum())
    write_run(tmp_path / "a", method("vanilla"), {"unbiased": {"f": right}}, samples=n)
    results = json.loads((tmp_path / "a/results.json").read_text())
    for checkpoint in results["checkpoints"].values():
        checkpoint["splits"]["unbiased"]["networks"]["f"] |= {
            "confusion": confusion.tolist(),
            "bias_correct": correct.tolist(),
            "bias_count": count.tolist(),
            "calibration": {"ece": 0.125},
        }
    (tmp_path / "a/results.json").write_text(json.dumps(results))
    against = [(c, b) for c in range(10) for b in range(10) if c != b]
    conflicting = sum(correct[i] for i in against) / sum(count[i] for i in against)
    worst = min(correct[c].sum() / labels[c] for c in range(10))
    (runs,), notes = compared(tmp_path / "a")
    assert notes == []
    (row,) = measures_table(runs).body.to_numpy().tolist()
    own = [(c, c) for c in range(10)]
    aligned = sum(correct[i] for i in own) / sum(count[i] for i in own)
    # No cell has 10 images.
    sides = [f"{100 * aligned:.1f}", f"{100 * conflicting:.1f}", "–*"]
    expected = [*sides, "–", f"{100 * worst:.1f}", "12.5", "–"]
    assert row == ["vanilla", "f", *expected]


def test_networks_that_a_config_names_are_not_imported(tmp_path, capsys):
    """A report reads folders of strangers: it must not run code that they name."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    values = method("rebias", f={"name": "evil:net"})
    write_run(tmp_path / "runs/a", values, {"unbiased": {"f": 500, "g0": 100}})
    (tmp_path / "runs/a/checkpoints").mkdir()
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "does not import 'evil:net'" in page_of(tmp_path / "out/results.html").text


def test_imagenet_c_has_a_table_by_corruption_and_severity(tmp_path, capsys):
    """Its splits are no columns and no panels beside the others, which stay readable."""
    names = [f"{name}-{s}" for name in (*BENCHMARK, "spatter") for s in range(1, 6)]
    tests = {name: f"shards/imagenet9-c/{name}" for name in names}
    correct = {name: 100 + 7 * n for n, name in enumerate(names)}
    for seed in (0, 1):
        values = method("rebias", seed=seed, data={"other_tests": tests})
        counts = {name: {"f": n + 20 * seed, "g0": n // 2} for name, n in correct.items()}
        counts = {"unbiased": {"f": 500, "g0": 100}, **counts}
        write_run(tmp_path / f"runs/{seed}", values, counts)
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    (runs,), _ = compared(*(tmp_path / "runs" / seed for seed in "01"))
    body = corruption_table(runs).body.to_numpy().tolist()
    # Runs of one name in several folders are several runs.
    for seed in "01":
        shutil.copytree(tmp_path / "runs" / seed, tmp_path / "seeds" / seed / "same")
    (same,), _ = compared(*(tmp_path / "seeds" / seed / "same" for seed in "01"))
    assert corruption_table(same).body.to_numpy().tolist() == body
    assert len(body) == 2 * (16 + 1)
    rows = {(row[1], row[2]): row[3:] for row in body}

    def shown(f: list[str]) -> str:
        seeds = [np.mean([(correct[name] + 20 * seed) / 10 for name in f]) for seed in (0, 1)]
        return f"{np.mean(seeds):.1f} ± {np.std(seeds, ddof=1):.1f}"

    assert rows["f", "fog"][2] == shown(["fog-3"])
    assert rows["f", "fog"][5] == shown([f"fog-{s}" for s in range(1, 6)])
    assert rows["f", "(spatter)"][0] == shown(["spatter-1"])
    means = rows["f", "mean of 75 of 75 splits"]
    assert means[1] == shown([f"{name}-2" for name in BENCHMARK])
    assert means[5] == shown([name for name in names if "spatter" not in name])
    page = (tmp_path / "out/results.html").read_text()
    assert "ImageNet-C: accuracy in percent by corruption and severity" in page
    assert "fog-3 (n = " not in page
    with Image.open(tmp_path / "out/results.png") as image:
        assert image.width < 1_000
    text = capsys.readouterr().out
    assert "fog-3" not in text.partition("wrote")[0]
    assert re.search(rf"rebias +f +mean of 75 of 75 splits .* {means[5]}\n", text)


def test_the_unbiased_figure_of_a_9_class_run_is_in_every_output(tmp_path, capsys):
    """The mean over cells of class and texture, which is the figure that is published."""
    values = read_config_file("imagenet9/rebias")
    values |= {"micro_batch": 128, "method": {**values["method"], "swap_inner_bandwidth": True}}
    values["optimizer"] |= {"name": "adam"}
    values["data"] |= {"root": str(tmp_path / "absent"), "selection": "none"}
    counts = {"val": {"f": 1890, "g0": 1470}}
    unbiased = {"f": (0.875, 0.885), "g0": (0.6, 0.66)}
    for seed in (0, 1):
        run = tmp_path / f"runs/{seed}"
        write_run(
            run, {**values, "precision": "float32", "seed": seed}, counts, classes=9, samples=2100
        )
        results = json.loads((run / "results.json").read_text())
        for checkpoint in results["checkpoints"].values():
            for network, score in checkpoint["splits"]["val"]["networks"].items():
                score["unbiased"] = unbiased[network][seed]
        (run / "results.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "rebias: unbiased 88.0 ± 0.7, published 90.5 (README of the public ReBias code)" in text
    assert re.search(r"net +seeds +val \(n = 2,100\) +val, unbiased\n", text)
    assert re.search(r"rebias +last +g0 +2 +70.0 ± 0.0 +63.0 ± 4.2\n", text)
    with (tmp_path / "out/results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["checkpoint"] == "last"]
    found = {(r["network"], int(r["seed"])): float(r["unbiased"]) for r in rows}
    assert found == {(n, seed): v for n, of in unbiased.items() for seed, v in enumerate(of)}
    with (tmp_path / "out/results-settings.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["checkpoint"], r["network"]) == ("last", "f")]
    (row,) = [row for row in rows if row["measure"] == "val/unbiased"]
    assert float(row["accuracy"]) == pytest.approx(0.88)
    assert float(row["low95"]) < 0.88 < float(row["high95"])
    assert row["departures_from_protocol"] == "0"


def test_a_method_that_no_picture_knows_is_drawn(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a", method("rebias"), {"unbiased": {"f": 500, "g0": 100}})
    (runs,), _ = compared(run)
    monkeypatch.setattr(plots, "_OF_METHOD", {})
    drawing = plots.rho_picture(runs)
    assert "rebias beside published points" in [axes.get_title() for axes in drawing.axes]


def test_a_9_class_run_stands_beside_the_published_rows(tmp_path):
    values = {**read_config_file("imagenet9/rebias"), "data": {
        **read_config_file("imagenet9/rebias")["data"],
        "root": str(tmp_path / "absent"),
        "other_tests": {"imagenet-a": "x"},
    }}  # fmt: skip
    counts = {"val": {"f": 900, "g0": 700}, "imagenet-a": {"f": 300, "g0": 200}}
    write_run(tmp_path / "runs/a", values, counts, classes=9)
    results = json.loads((tmp_path / "runs/a/results.json").read_text())
    for checkpoint in results["checkpoints"].values():
        checkpoint["splits"]["val"]["networks"]["f"]["unbiased"] = 0.875
    (tmp_path / "runs/a/results.json").write_text(json.dumps(results))
    assert to_yaml(read_run(tmp_path / "runs/a").config)
    where = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    # One run with another split than the published is not the published experiment.
    assert report.main(where) == 0
    assert "rebias-report --published shows them" in page_of(tmp_path / "out/results.html").text
    assert report.main([*where, "--published"]) == 0
    page = (tmp_path / "out/results.html").read_text()
    table = page[page.index("9-class ImageNet: accuracy") :]
    table = table[: table.index("</table>")]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in table.split("<tr")[2:]]
    ours = next(row for row in rows if row[1] == "here, last")
    assert [cell.split()[0] for cell in ours[2:]] == ["90.0", "87.5", "30.0"]
    paper = next(row for row in rows if row[0] == "ReBias" and "README" in row[1])
    assert paper[2:] == ["91.9", "90.5", "29.6"]
