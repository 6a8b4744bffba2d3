"""What a report computes and writes, against libraries, brute force and hostile input."""

import csv
import json
import os
import re
import shlex
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import markdown
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rebias_dist import report
from rebias_dist.cli import parse_train
from rebias_dist.config_files import (
    config_comment,
    list_configs,
    read_config_file,
    to_yaml,
    validate,
)
from rebias_dist.evaluation.corruptions import BENCHMARK
from rebias_dist.reporting.command import command_of
from rebias_dist.reporting.corruptions import corruption_table
from rebias_dist.reporting.metrics import POINTS, read_curves
from rebias_dist.reporting.plots import rho_picture
from rebias_dist.reporting.protocol import departures
from rebias_dist.reporting.published import published_figures
from rebias_dist.reporting.series import Series, contrasts, series_of
from rebias_dist.reporting.tables import measures_table
from rebias_dist.run_results import Figure, Group, group_runs, plain, read_run
from tests.test_report import method, write_run

HOSTILE = "<script>alert(1)</script>$\\frac{\x1b[31m&'\"\n{{7*7}}"
SHIPPED = [name for name, _ in list_configs() if "/sweeps/" not in name]


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


@pytest.mark.parametrize("values", [(0.61, 0.655, 0.7), (0.2, 0.9), (0.5, 0.5, 0.5, 0.51)])
def test_the_interval_over_seeds_is_students(values):
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    expected = (max(low, 0), min(high, 1))
    assert Figure.of(values, (10,) * len(values)).interval == pytest.approx(expected)


@pytest.mark.parametrize(("correct", "samples"), [(0, 10), (64, 100), (1000, 1000), (1, 3)])
def test_the_interval_of_one_seed_is_wilsons(correct, samples):
    expected = scipy.stats.binomtest(correct, samples).proportion_ci(method="wilson")
    found = Figure.of((correct / samples,), (samples,)).interval
    assert found == pytest.approx(tuple(expected), abs=1e-12)


def test_the_lead_over_vanilla_is_that_of_the_paired_test(tmp_path):
    counts = {"vanilla": [500, 540, 610, 700], "rebias": [560, 570, 690]}  # no rebias of seed 3
    for name, of_seed in counts.items():
        for seed, n in enumerate(of_seed):
            values = method(name, seed=seed)
            write_run(tmp_path / f"{name}{seed}", values, {"unbiased": {"f": n}})
    groups, _ = group_runs([read_run(p) for p in sorted(tmp_path.iterdir())])
    (found,) = contrasts(groups, "unbiased")
    ours, theirs = (np.array(counts[name][:3]) / 1000 for name in ("rebias", "vanilla"))
    expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.seeds == 3
    assert found.difference == pytest.approx(np.mean(ours - theirs))
    assert found.interval == pytest.approx(tuple(expected))


def test_runs_of_other_settings_are_not_compared_with_vanilla(tmp_path):
    write_run(tmp_path / "v", method("vanilla", epochs=4), {"unbiased": {"f": 500}})
    write_run(tmp_path / "r", method("rebias", epochs=5), {"unbiased": {"f": 600}})
    groups, _ = group_runs([read_run(tmp_path / name) for name in "vr"])
    assert contrasts(groups, "unbiased") == []


# ---------------------------------------------------------------- protocols


@pytest.mark.parametrize("name", [name for name in SHIPPED if "/demo" not in name])
def test_shipped_configurations_depart_from_the_protocol_as_they_say(name):
    """Their comments name the choices: a selection split, the micro-batch, and of which network
    a radius is in g's step, where it is the median of each.
    """
    config = validate({**read_config_file(name), "name": "x"})
    found = departures(Group("", config, {}))
    if config.data.dataset == "imagenet1k":
        assert found is None
        return
    assert found is not None
    keys = {one.key for one in found}
    named = {"data.selection", "micro_batch"}
    if name == "imagenet9/rebias":
        named.add("method.swap_inner_bandwidth")
    assert keys - {"data.source"} == named
    assert ("data.source" in keys) is (config.data.dataset == "biased_mnist")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"epochs": 81}, "epochs"),
        ({"max_steps": 7}, "max_steps"),
        ({"precision": "bf16"}, "precision"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name"),
        ({"f": {"kernel_size": 5}}, "f.kernel_size"),
        ({"g": [{"kernel_size": 1}, {"kernel_size": 3}]}, "g"),
        ({"radius": {"f": "median", "g": 1.0}}, "radius.f"),
        ({"method": {"name": "rebias", "lambda_f": 2.0}}, "method.lambda_f"),
    ],
)
def test_each_departure_is_named(change, key):
    published = {
        "micro_batch": 256,
        "radius": {"f": 1.0, "g": 1.0},
        "data": {"selection": "none", "source": "mnist"},
    }
    assert departures(Group("", validate(published), {})) == []
    found = departures(Group("", validate({**published, **change}), {}))
    assert [one.key for one in found] == [key]


BIASED_MNIST = """
Bahng et al., ICML 2020, table 1 (arXiv 1910.02806)
Vanilla      .999 10.4  .997 33.4  .995 72.1  .99 89.1
Biased       .999 10.0  .997 10.0  .995 10.0  .99 10.0
LearnedMixin .999 12.1  .997 50.2  .995 78.2  .99 88.3
RUBi         .999 13.7  .997 43.0  .995 90.4  .99 93.6
ReBias       .999 22.7  .997 64.2  .995 76.0  .99 88.1
re-run of the paper, ML Reproducibility Challenge 2020
Vanilla .999 10.2  .997 48.6  .995 73.0  .99 88.1  .98 93.6  .95 96.9  .9 98.1  .85 98.4
Biased  .999 10.0  .997 10.0  .995 10.0  .99 10.0            .95 12.7  .9 14.3  .85 15.5
ReBias  .999 21.1  .997 62.0  .995 75.8  .99 87.6  .98 93.5  .95 96.5  .9 97.9  .85 98.2
Nahon et al., ICCV 2023
LfF     .999 15.3  .997 63.7  .995 90.3  .99 95.1
SoftCon .999 65.0  .997 88.6  .995 93.1  .99 95.2
"""
IMAGENET9 = """
README of the public ReBias code
Vanilla ResNet-18  90.8 88.8 24.9
Biased BagNet-18   67.7 65.9 19.5
Stylised ImageNet  88.4 86.6 24.6
LearnedMixin       67.9 65.9 18.8
RUBi               90.5 88.6 27.7
ReBias             91.9 90.5 29.6
re-run by Hong & Yang, NeurIPS 2021
Vanilla ResNet-18  94.0 92.7 30.5
LearnedMixin       79.2 76.6 19.0
RUBi               93.9 92.5 31.0
ReBias             94.0 92.7 30.5
"""
METHODS = {
    "Vanilla": "vanilla",
    "Vanilla ResNet-18": "vanilla",
    "Biased": "biased",
    "Biased BagNet-18": "biased",
    "LearnedMixin": "learned_mixin",
    "RUBi": "rubi",
    "ReBias": "rebias",
}


def test_published_figures_are_those_of_the_tables():
    """Copied from the papers a second time."""
    expected = []
    for dataset, text in (("biased_mnist", BIASED_MNIST), ("imagenet9", IMAGENET9)):
        source = ""
        for line in filter(None, text.splitlines()):
            found = re.fullmatch(r"(.+?)((?: +\d*\.\d+)+)", line)
            if not found:
                source = line
                continue
            label, numbers = found[1], list(map(float, found[2].split()))
            if dataset == "biased_mnist":
                pairs = zip(numbers[::2], numbers[1::2], strict=True)
                columns = [("unbiased", rho, percent) for rho, percent in pairs]
            else:
                measures = ("biased", "unbiased", "imagenet-a")
                columns = [(m, None, n) for m, n in zip(measures, numbers, strict=True)]
            expected += [(dataset, METHODS.get(label, ""), label, *c, source) for c in columns]
    assert [tuple(figure) for figure in published_figures()] == expected


def test_published_figures_have_sources_and_agree_with_the_shipped_configurations():
    figures = published_figures()
    assert all(p.source and 0 < p.percent < 100 for p in figures)
    for name in SHIPPED:
        if not name.startswith("imagenet9/"):
            continue
        label = {"biased": "Biased BagNet-18", "stylised": "Stylised ImageNet"}
        stem = name.partition("/")[2]
        comment = config_comment(name)
        told = re.search(r"([\d.]+) / ([\d.]+) / ([\d.]+) \(README", comment)
        assert told, name
        found = [
            p.percent
            for p in figures
            if "README" in p.source and (p.method == stem or p.label == label.get(stem))
        ]
        assert found == [float(part) for part in told.groups()], name


def test_rho_of_shards_that_were_made_elsewhere_is_theirs_or_unknown(tmp_path):
    data = {"root": str(tmp_path / "shards")}
    for known in (False, True):
        if known:
            (tmp_path / "shards/train").mkdir(parents=True)
            manifest = tmp_path / "shards/train/manifest.json"
            manifest.write_text(json.dumps({"options": {"rho": 0.997}}))
        run = tmp_path / f"run{known}"
        write_run(run, method("vanilla", data=data), {"unbiased": {"f": 500}})
        groups, _ = group_runs([read_run(run)])
        assert list(series_of(groups)[0].groups) == [0.997 if known else None]


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_of_a_shipped_configuration_is_its_name(name):
    config = validate(read_config_file(name))
    words = shlex.split(command_of(config) or "")
    assert words[:2] == ["rebias-train", "--config"]
    assert parse_train(words[1:]).config == config


texts = st.text(min_size=1, max_size=12)  # of any characters
lines = texts.filter(str.isprintable)


@settings(deadline=None, max_examples=50)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**31),
            "epochs": st.integers(1, 200),
            "max_steps": st.none() | st.integers(1, 9),
            "precision": st.sampled_from(["float32", "bf16", "float64"]),
            "deterministic": st.booleans(),
            "optimizer": st.fixed_dictionaries({"lr": st.floats(1e-9, 10)}),
            "radius": st.fixed_dictionaries({"f": st.just("median") | st.floats(1e-6, 1e6)}),
            "data": st.fixed_dictionaries(
                {"source": lines},
                optional={
                    "selection": st.just("none") | st.floats(0.01, 0.9),
                    "other_tests": st.dictionaries(texts, texts, max_size=2),
                },
            ),
            "g": st.lists(
                st.fixed_dictionaries({"kernel_size": st.integers(1, 9)}), min_size=1, max_size=3
            ),
            "f": st.fixed_dictionaries(
                {"kernel_size": st.integers(1, 9)},
                optional={"options": st.dictionaries(texts, texts)},
            ),
        },
    )
)
def test_the_command_of_any_configuration_gives_it_back(values):
    taken = {"train", "selection", "biased", "unbiased", "rho0"}
    if taken & values.get("data", {}).get("other_tests", {}).keys():
        return
    config = validate(values)
    command = command_of(config)
    assert command is not None
    assert parse_train(shlex.split(command)[1:]).config == config


def test_a_text_that_is_for_no_terminal_is_in_no_command():
    assert command_of(validate({"data": {"source": "a\x1b[2Jb"}})) is None


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
    published = [r for r in rows if r["source"] != "here"]
    assert len(published) == sum(p.dataset == "biased_mnist" for p in published_figures())


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
    (group,), notes = group_runs([read_run(tmp_path / "a")])
    assert notes == []
    table = measures_table([group], "unbiased")
    assert table is not None
    (row,) = [[cell.text for cell in row] for row in table.rows]
    expected = [f"{100 * conflicting:.1f}", "–", f"{100 * worst:.1f}", "12.5", "–"]
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
    (group,), _ = group_runs([read_run(tmp_path / "runs" / seed) for seed in "01"])
    table = corruption_table([group])
    assert table is not None
    assert len(table.rows) == 2 * (16 + 1)
    rows = {(row[1].text, row[2].text): [cell.text for cell in row[3:]] for row in table.rows}

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
    assert f"rebias  f  {means[5]} (mean of 75 of 75 splits)" in text


def test_the_unbiased_figure_of_a_9_class_run_is_in_every_output(tmp_path, capsys):
    """The mean over cells of class and texture, which is the figure that is published."""
    values = read_config_file("imagenet9/rebias")
    values |= {"micro_batch": 128, "method": {**values["method"], "swap_inner_bandwidth": True}}
    values["data"] |= {"root": str(tmp_path / "absent"), "selection": "none"}
    counts = {"val": {"f": 1890, "g0": 1470}}
    unbiased = {"f": (0.875, 0.885), "g0": (0.6, 0.66)}
    for seed in (0, 1):
        run = tmp_path / f"runs/{seed}"
        write_run(run, {**values, "seed": seed}, counts, classes=9, samples=2100)
        results = json.loads((run / "results.json").read_text())
        for checkpoint in results["checkpoints"].values():
            for network, score in checkpoint["splits"]["val"]["networks"].items():
                score["unbiased"] = unbiased[network][seed]
        (run / "results.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "rebias: unbiased 88.0 ± 0.7, published 90.5 (README of the public ReBias code)" in text
    last = text.partition("last checkpoint")[2]
    assert re.search(r"net +seeds +val +val, unbiased\n", last)
    assert re.search(r"rebias +g0 +2 +70.0 ± 0.0 +63.0 ± 4.2\n", last)
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


def test_a_method_that_no_picture_knows_is_drawn(tmp_path):
    run = write_run(tmp_path / "a", method("rebias"), {"unbiased": {"f": 500, "g0": 100}})
    (group,), _ = group_runs([read_run(run)])
    drawing = rho_picture([Series("mine", "mine", {0.9: group})], "unbiased")
    assert "mine beside published points" in [axes.get_title() for axes in drawing.axes]


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
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/results.html").read_text()
    table = page[page.index("9-class ImageNet: accuracy") :]
    table = table[: table.index("</table>")]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in table.split("<tr>")[2:]]
    ours = next(row for row in rows if row[1] == "here, last")
    assert [cell.split()[0] for cell in ours[2:]] == ["90.0", "87.5", "30.0"]
    paper = next(row for row in rows if row[0] == "ReBias" and "README" in row[1])
    assert paper[2:] == ["91.9", "90.5", "29.6"]
