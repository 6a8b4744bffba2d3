"""The published figures on the page about reproducing are those that reports show."""

import csv
import re

import numpy as np
import pytest
from scipy import stats

import rebias_dist
from rebias_dist.reporting.metrics import read_curves
from tests import ROOT

ADAMP = "page of the authors of AdamP (Heo et al., ICLR 2021)"
SOURCES = {
    "Bahng et al., ICML 2020, table 1": "Bahng et al., ICML 2020, table 1 (arXiv 1910.02806)",
    "re-run, ML Reproducibility Challenge 2020": "re-run of the paper, "
    "ML Reproducibility Challenge 2020",
    "authors of AdamP, with Adam": f"{ADAMP}, with Adam",
    "authors of AdamP, with AdamP": f"{ADAMP}, with AdamP",
}


PAGE = (ROOT / "docs/reproducing.md").read_text(encoding="utf-8")


def rows(first: str) -> list[list[str]]:
    """The rows of the table whose head begins with ``first``, as cells."""
    lines = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_published_figure_is_in_the_table_of_reports():
    with (ROOT / "rebias_dist/reporting/published.csv").open(encoding="utf-8") as file:
        published = {
            (row["source"], row["method"], float(row["rho"])): float(row["percent"])
            for row in csv.DictReader(file)
            if row["dataset"] == "biased_mnist" and row["measure"] == "unbiased"
        }
    head, _, *found = rows("ρ")
    assert len(found) == 6
    for method, *figures, source in found:
        for rho, figure in zip(head[1:-1], figures, strict=True):
            assert float(figure) == published[SOURCES[source], method.lower(), float(rho)]


def mean_over(folder: str, tag: str, steps: int, first: int, last: int) -> float:
    """Mean of a run of so many steps from one step to another, both at an edge of stretches.

    An archive has 150 stretches of each curve, as nearly alike as can be.
    """
    _, values = read_curves(ROOT / "docs/results" / folder, lambda found: found == tag)[tag]
    sizes = [len(part) for part in np.array_split(np.arange(steps), 150)]
    edges = {0, *np.cumsum(sizes)}
    assert {first - 1, last} <= edges
    return float(np.repeat(values, sizes)[first - 1 : last].mean())


def test_bf16_has_the_losses_of_float32():
    _, _, *found = rows("mean over steps")
    runs = {"precision/float32": 468, "reduced_schedule/reduced": 2340}
    for span, *figures in found:
        first, last = map(int, span.split(" to "))
        expected = []
        for tag, digits in (("f/ce", 4), ("g0/ce", 4), ("f/hsic_g0", 5)):
            values = [
                mean_over(f"{name}-rho0.997-rebias-seed0", tag, steps, first, last)
                for name, steps in runs.items()
            ]
            assert values[1] == pytest.approx(values[0], rel=0.02)
            expected += [f"{value:.{digits}f}" for value in values]
        assert figures == expected
    assert len(found) == 2


def test_frozen_heads_are_beside_trained_ones():
    runs = rebias_dist.results([ROOT / "docs/results/small_digits", ROOT / "docs/results/heads"])
    last = runs[(runs["checkpoint"] == "last") & (runs["split"] == "unbiased")]
    names = {
        "RUBi, trained": "rubi",
        "RUBi, frozen": "frozen_heads:FrozenRUBi",
        "LearnedMixin, trained": "learned_mixin",
        "LearnedMixin, frozen": "frozen_heads:FrozenLearnedMixin",
    }
    head, _, *found = rows("heads")
    assert [row[0] for row in found] == list(names)
    measured = {}
    for name, *figures in found:
        for title, figure in zip(head[1:], figures, strict=True):
            rho = float(re.search(r"ρ = ([\d.]+)", title)[1])
            mine = last[(last["method.name"] == names[name]) & (last["rho"] == rho)]
            mine = mine[mine["network"] == "f"].set_index("seed")
            percent = 100 * mine["accuracy"].astype(float)
            assert len(percent) == 3
            assert figure == f"{percent.mean():.1f} ± {percent.std(ddof=1):.1f}"
            measured[(*name.split(", "), title)] = percent
    assert "contain 0 in all four cases" in " ".join(PAGE.split())
    for (method, heads, title), frozen in measured.items():
        if heads == "frozen":
            differences = frozen - measured[method, "trained", title]
            assert bool(differences.mean() < 0) == (method == "RUBi")
            half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / 3**0.5
            assert abs(differences.mean()) < half


def test_the_optimizer_and_the_radii_are_beside_the_run_at_full_size():
    archives = ROOT / "docs/results"
    runs = {
        "AdamP, σ = 1": archives / "reduced_schedule/reduced-rho0.997-rebias-seed0",
        "Adam, σ = 1": archives / "ablations/adam-rho0.997-rebias-seed0",
        "AdamP, σ by median": archives / "ablations/median-rho0.997-rebias-seed0",
    }
    _, _, *found = rows("setting")
    assert [row[0] for row in found] == list(runs)
    for name, *figures in found:
        table = rebias_dist.results(runs[name])
        optimizer, radius = name.split(", σ ")
        assert set(table["optimizer.name"]) == {optimizer.lower()}
        assert set(table["radius.f"].astype(str)) == {{"= 1": "1.0", "by median": "median"}[radius]}
        mine = table[(table["checkpoint"] == "last") & (table["split"] == "unbiased")]
        of_f = mine[mine["network"] == "f"].iloc[0]
        curves = read_curves(runs[name], lambda tag: True)
        percent = 100 * np.array(curves["unbiased/f_accuracy"][1])
        last, error = 100 * of_f["accuracy"], 100 * of_f["standard_error"]
        expected = [f"{percent[7]:.1f}", f"{last:.1f} ({error:.1f})"]
        expected += [f"{100 * of_f[column]:.1f}" for column in ("follows_bias", "conflicting")]
        assert figures == expected
    # The last of them is that with σ by median.
    assert {f"{value:.1f}" for value in percent} == {"10.0"}
    medians = [float(curves[f"{name}/sigma"][1][at]) for at in (0, -1) for name in ("f", "g0")]
    said = " ".join(PAGE.split())
    assert (
        "{:.1f} for f and {:.1f} for g in the first epoch, {:.1f} and {:.1f} in".format(*medians)
        in said
    )
    with_adam, with_adamp = (float(found[index][2].split()[0]) for index in (1, 0))
    assert f"Adam leads AdamP by {with_adam - with_adamp:.1f} points" in said
    for name in ("reproducing", "results"):
        page = " ".join((ROOT / f"docs/{name}.md").read_text(encoding="utf-8").split())
        assert f"Adam has {with_adam} %, AdamP {with_adamp} %" in page
    page = " ".join((ROOT / "docs/full-size.md").read_text(encoding="utf-8").split())
    assert f"With Adam it has {with_adam} %" in page
    at_full_size = re.search(r"ReBias \| f \| 3 \| [^|]+ \| ([^|]+) \|", page)[1]
    assert f"Three seeds of AdamP have {at_full_size}," in said
