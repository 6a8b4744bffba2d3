"""The published figures on the page about reproducing are those that reports show."""

import csv

from tests import ROOT

ADAMP = "page of the authors of AdamP (Heo et al., ICLR 2021)"
SOURCES = {
    "Bahng et al., ICML 2020, table 1": "Bahng et al., ICML 2020, table 1 (arXiv 1910.02806)",
    "re-run, ML Reproducibility Challenge 2020": "re-run of the paper, "
    "ML Reproducibility Challenge 2020",
    "authors of AdamP, with Adam": f"{ADAMP}, with Adam",
    "authors of AdamP, with AdamP": f"{ADAMP}, with AdamP",
}


def rows() -> list[list[str]]:
    text = (ROOT / "docs/reproducing.md").read_text(encoding="utf-8")
    lines = text[text.index("| ρ |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_published_figure_is_in_the_table_of_reports():
    with (ROOT / "rebias_dist/reporting/published.csv").open(encoding="utf-8") as file:
        published = {
            (row["source"], row["method"], float(row["rho"])): float(row["percent"])
            for row in csv.DictReader(file)
            if row["dataset"] == "biased_mnist" and row["measure"] == "unbiased"
        }
    head, _, *found = rows()
    assert len(found) == 6
    for method, *figures, source in found:
        for rho, figure in zip(head[1:-1], figures, strict=True):
            assert float(figure) == published[SOURCES[source], method.lower(), float(rho)]
