"""Every figure of the small digits is that of an archived run; the archives are all named."""

import csv
import re

import pytest

import rebias_dist
from rebias_dist.commands import report
from tests import ROOT

ARCHIVES = ROOT / "docs/results/small_digits"


@pytest.fixture(scope="module")
def runs():
    found = rebias_dist.results(ARCHIVES)
    assert (found["status"] == "finished").all()
    return found


def test_the_page_of_small_digits_is_the_report_of_the_archives(tmp_path):
    assert (
        report.main(
            [str(ARCHIVES), "--published", "--out", str(tmp_path), "--name", "small-digits"]
        )
        == 0
    )
    written = (tmp_path / "small-digits.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/small-digits.md").read_text(encoding="utf-8")
    by = re.compile("^Written by .*$", re.MULTILINE)
    assert by.sub("", page) == by.sub("", written)


def test_the_page_of_results_counts_the_archives():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| .* \| `(\w+)` \| (\d+) \|$", page, re.MULTILINE)
    made_by = re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)
    archives = {
        folder.name: str(len(rebias_dist.results(folder)["run"].unique()))
        for folder in (ROOT / "docs/results").iterdir()
    }
    assert dict(said) == archives
    assert sorted(made_by) == sorted(archives)


def test_the_demo_says_what_to_expect(runs):
    text = (ROOT / "configs/biased_mnist/demo.yaml").read_text(encoding="utf-8")
    figure = r"(\d+ ± \d+)"
    last = rf"accuracy {figure} % \(vanilla {figure}, biased (10); .*, chance 10\) of the last"
    best = rf"checkpoint, {figure} % \(vanilla {figure}\) of the best on selection data"
    start = rf"was {figure} % for ReBias and {figure} % for vanilla"
    page = (ROOT / "docs/start.md").read_text(encoding="utf-8")
    mine = runs[(runs["split"] == "unbiased") & (runs["rho"] == 0.95)]

    def shown(checkpoint: str, method: str, network: str) -> str:
        chosen = {"checkpoint": checkpoint, "method": method, "network": network}
        of = mine[(mine[list(chosen)] == list(chosen.values())).all(axis=1)]["accuracy"]
        assert len(of) == 3
        percent = 100 * of.astype(float)
        return f"{percent.mean():.0f} ± {percent.std(ddof=1):.0f}"

    of_f = {c: (shown(c, "rebias", "f"), shown(c, "vanilla", "f")) for c in ("last", "best")}
    assert re.search(last, text).groups() == (*of_f["last"], "10")
    assert shown("last", "biased", "g0") == "10 ± 0"
    assert re.search(best, text).groups() == of_f["best"]
    assert re.search(start, " ".join(page.split())).groups() == of_f["best"]


def test_the_readme_says_what_the_picture_of_digits_shows(runs):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(
        r"f \(seed 0\) is right on (\d+) of the (\d+) digits that conflict, g on none", text
    )
    mine = runs[(runs["run"] == "results-rebias-rho0.95-seed0") & (runs["split"] == "unbiased")]
    mine = mine[mine["checkpoint"] == "best"].set_index("network")
    conflicting = round(0.9 * mine.loc["f", "samples"])
    right = mine["conflicting"].astype(float) * conflicting
    assert (round(right["f"]), conflicting) == tuple(map(int, said.groups()))
    assert right["g0"] == 0


def test_the_pages_say_where_rebias_is_told_from_vanilla():
    page = (ROOT / "docs/small-digits.md").read_text(encoding="utf-8")
    row = r"^\| rebias, data\.rho ([\d.]+) \| (better|worse|not told apart) \|"
    found = dict(re.findall(row, page, re.MULTILINE))
    assert found == {"0.99": "better", "0.95": "not told apart", "0.9": "not told apart"}
    for name, said in (
        ("README.md", "three seeds do not distinguish ReBias from vanilla; at ρ = 0.99 they do"),
        ("docs/results.md", "Three seeds distinguish ReBias from vanilla at one of three ρ"),
        ("docs/reproducing.md", "distinguish it from vanilla at ρ = 0.99, not at 0.95 and 0.9"),
    ):
        assert said in " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_the_page_of_the_search_is_its_csv():
    page = (ROOT / "docs/demo_search.md").read_text(encoding="utf-8")
    measured: dict = {}
    with (ROOT / "docs/demo_search.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = tuple(row[name] or "–" for name in ("method", "lambda_f", "radius_f", "norm"))
            of_run = measured.setdefault((*key, row["seed"]), {})
            of_run[int(row["epoch"])] = float(row["selection_conflicting_accuracy"])
    epochs = range(2, 13, 2)
    shown = {}
    for line in re.findall(r"^\| (?:rebias|vanilla) \|.*$", page, re.MULTILINE):
        *key, seed = [cell.strip() for cell in line.split("|")[1:6]]
        shown[(*key, seed)] = [cell.strip() for cell in line.split("|")[6:-1]]
    assert shown == {
        key: [f"{of_run[epoch]:.3f}" if epoch in of_run else "" for epoch in epochs]
        for key, of_run in measured.items()
    }
    leads = [
        sum(
            measured["rebias", "64.0", "1.0", "batch", seed][epoch]
            - measured["vanilla", "–", "–", "batch", seed][epoch]
            for seed in "012"
        )
        / 3
        for epoch in (8, 10, 12)
    ]
    said = r"was ([\d.]+) after 8 epochs, ([\d.]+) after 10 .*? and ([\d.]+) after 12"
    found = re.search(said, " ".join(page.split())).groups()
    assert found == tuple(f"{lead:.3f}" for lead in leads)
