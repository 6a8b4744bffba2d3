"""Every figure of the small digits is that of an archived run; the archives are all named."""

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
    said = re.search(
        r"unbiased accuracy (\d+ ± \d+) % \(vanilla (\d+ ± \d+), biased (\d+);", text
    ).groups()
    mine = runs[(runs["split"] == "unbiased") & (runs["rho"] == 0.95)]
    mine = mine[mine["checkpoint"] == "last"]
    figures = []
    for method, network in (("rebias", "f"), ("vanilla", "f"), ("biased", "g0")):
        of = mine[(mine["method"] == method) & (mine["network"] == network)]["accuracy"]
        assert len(of) == 3
        percent = 100 * of.astype(float)
        figures.append(f"{percent.mean():.0f} ± {percent.std(ddof=1):.0f}")
    assert said == (*figures[:2], figures[2].partition(" ")[0])


def test_the_pages_say_where_rebias_is_told_from_vanilla():
    page = (ROOT / "docs/small-digits.md").read_text(encoding="utf-8")
    row = r"^\| rebias, data\.rho ([\d.]+) \| (better|worse|not told apart) \|"
    found = dict(re.findall(row, page, re.MULTILINE))
    assert found == {"0.99": "better", "0.95": "not told apart", "0.9": "not told apart"}
    for name, said in (
        ("README.md", "three seeds tell ReBias from vanilla at one of three ρ"),
        ("docs/reproducing.md", "tell it from vanilla at ρ = 0.99, not at 0.95 and 0.9"),
    ):
        assert said in " ".join((ROOT / name).read_text(encoding="utf-8").split())
