"""A report on runs of several data sets says of each what a report on it alone says."""

import csv
import re

import pytest

import rebias_dist
from rebias_dist.commands import report
from tests.commands.test_report import compared, method, write_run

COUNTS = {"unbiased": {"f": 640, "g0": 100}}
BIRDS = {"dataset": "birds", "root": "shards/birds", "test_splits": ["unbiased"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on two data sets that differ in many settings, each with the same two settings.

    Test data chose the best checkpoint of the digits, and selection data that of the birds.
    """
    root = tmp_path_factory.mktemp("datasets")
    of_birds = {"epochs": 9, "f": {"name": "resnet18"}, "optimizer": {"lr": 0.01}, "data": BIRDS}
    of_digits = {"data": {"selection": "none"}}
    for dataset, values, more in (("birds", of_birds, 200), ("digits", of_digits, 0)):
        for seed in (0, 1):
            for lambda_f in (1.0, 2.0):
                counts = {"unbiased": {"f": int(500 + 40 * lambda_f + seed + more), "g0": 100}}
                rebias = {"method": {"name": "rebias", "lambda_f": lambda_f}, "seed": seed}
                write_run(root / dataset / f"r{lambda_f}-{seed}", rebias | values, counts)
            vanilla = method("vanilla", seed=seed, **values)
            write_run(root / dataset / f"v{seed}", vanilla, {"unbiased": {"f": 500 + more}})
    return root


NAMES = ["vanilla", "rebias, method.lambda_f 1.0", "rebias, method.lambda_f 2.0"]


def test_a_name_has_only_what_differs_within_its_data_set(runs):
    frame = rebias_dist.results([runs / "birds", runs / "digits"])
    found = frame.groupby("dataset")["setting"].unique()
    assert {dataset: set(names) for dataset, names in found.items()} == {
        "birds": set(NAMES),
        "biased_mnist": set(NAMES),
    }
    means = frame.query("checkpoint == 'last' & network == 'f'").groupby(["dataset", "setting"])
    assert means["accuracy"].mean()["birds", "vanilla"] == 0.7
    assert means["accuracy"].mean()["biased_mnist", "vanilla"] == 0.5
    assert set(frame.loc[frame["dataset"] == "birds", "checkpoint"]) == {"last", "best"}
    comparisons, notes = compared(*sorted(runs.glob("*/*")))
    assert notes == []
    for one, of in zip(comparisons, ("best", "last"), strict=True):
        assert [(group.label, len(group.runs)) for group in one.groups] == [(n, 2) for n in NAMES]
        assert {group.config.data.dataset for group in one.groups} == {one.dataset}
        assert {group.counting for group in one.groups} == {of}
        assert set(one.frame.loc[one.frame["counts"], "checkpoint"]) == {of}


def read(folder, name):
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_common_report_is_the_reports_on_each_data_set_together(runs, tmp_path, capsys):
    said = {}
    for name, given in (("birds", ["birds"]), ("digits", ["digits"]), ("all", ["birds", "digits"])):
        out = str(tmp_path / name)
        assert report.main([*(str(runs / one) for one in given), "--out", out]) == 0
        said[name] = capsys.readouterr().out.partition("wrote")[0]
    assert said["all"] == said["birds"] + said["digits"]
    for file in ("results.csv", "results-settings.csv"):
        apart = read(tmp_path / "birds", file) + read(tmp_path / "digits", file)
        key = sorted(row.items() for row in apart)
        assert sorted(row.items() for row in read(tmp_path / "all", file)) == key
    page = (tmp_path / "all/results.html").read_text()
    assert re.findall("<h2>(.*)</h2>", page) == ["birds", "biased_mnist"]
    assert re.findall("<summary>([^c].*)</summary>", page) == NAMES * 2
    anchors = re.findall(' id="(.*?)"', re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL))
    assert len(set(anchors)) == len(anchors)
    for one in ("birds", "digits"):
        alone = (tmp_path / one / "results.md").read_text().partition("\n## ")[2]
        alone = alone.replace("(results", f"(results-{alone.split()[0].replace('&#95;', '_')}")
        assert alone in (tmp_path / "all/results.md").read_text()


def test_no_two_data_sets_share_their_pictures(tmp_path):
    names = ["a b", "a?b", "a_b1", "a_b", "b" * 70, "b" * 71]
    for index, name in enumerate(names):
        values = method("vanilla", data={**BIRDS, "dataset": name})
        write_run(tmp_path / f"runs/{index}", values, COUNTS)
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == len(names)
