"""Every figure at full size on a page is that of an archived run."""

import csv
import re

import numpy as np
import pytest
from scipy import stats

import rebias_dist
from rebias_dist.reporting.metrics import read_curves
from tests import ROOT

ARCHIVES = ROOT / "docs/results/reduced_schedule"
PAGE = (ROOT / "docs/full-size.md").read_text(encoding="utf-8")
SAID = " ".join(PAGE.split())
NAMES = {"ReBias": "rebias", "RUBi": "rubi", "LearnedMixin": "learned_mixin"}


@pytest.fixture(scope="module")
def runs():
    """The figures of the last checkpoints."""
    found = rebias_dist.results(ARCHIVES)
    assert (found["status"] == "finished").all()
    return found[found["checkpoint"] == "last"]


def shown(runs, rho: str, method: str, network: str, split: str) -> tuple[str, int]:
    """The figure as a page shows it, and the number of seeds."""
    method = NAMES.get(method, method)
    wanted = {"method": method, "network": network, "split": split, "rho": float(rho)}
    mine = runs[(runs[list(wanted)] == list(wanted.values())).all(axis=1)]
    accuracies = 100 * mine["accuracy"].astype(float)
    if len(mine) == 1:
        error = 100 * float(mine["standard_error"].iloc[0])
        return f"{accuracies.iloc[0]:.1f} ({error:.1f})", 1
    return f"{accuracies.mean():.1f} ± {accuracies.std(ddof=1):.1f}", len(mine)


def rows(first: str) -> list[list[str]]:
    """The rows of the table whose head begins with ``first``, as cells."""
    lines = PAGE[PAGE.index(f"| {first} ") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_the_figures_of_the_archives(runs):
    head, _, *found = rows("ρ")
    trained = runs[["rho", "method", "network"]].drop_duplicates().itertuples(index=False)
    assert sorted((float(row[0]), NAMES.get(row[1], row[1]), row[2]) for row in found) == sorted(
        tuple(one) for one in trained
    )
    for one in head[4:]:
        split, images = re.fullmatch(r"(\w+) \(n = ([\d,]+)\)", one).groups()
        assert set(runs[runs["split"] == split]["samples"]) == {int(images.replace(",", ""))}
    for rho, method, network, seeds, *figures in found:
        for split, figure in zip(head[4:], figures, strict=True):
            split = split.partition(" ")[0]
            assert (figure, int(seeds)) == shown(runs, rho, method, network, split)


def test_the_number_of_finished_runs_is_that_of_the_archives(runs):
    said = re.search(r"Of its 36 runs, (\d+) are done", SAID)
    assert int(said[1]) == len(runs["run"].unique())


def test_the_curves_are_those_of_the_archives(runs):
    head, _, *found = rows("after epoch")
    assert head[1:] == [str(epoch) for epoch in range(1, 11)]
    assert [row[0] for row in found] == ["vanilla", "ReBias"]
    for method, *figures in found:
        mine = runs[(runs["method"] == NAMES.get(method, method)) & (runs["rho"] == 0.997)]
        curves = [
            read_curves(ARCHIVES / name, lambda tag: True)["unbiased/f_accuracy"][1]
            for name in sorted(set(mine["run"]))
        ]
        assert figures == [f"{100 * value:.1f}" for value in np.mean(curves, axis=0)]
    # Those of ReBias, seed by seed.
    percent = 100 * np.array(curves)
    assert "passes 11 % for the first time after epoch 4 or 5" in SAID
    assert set((percent > 11).argmax(axis=1) + 1) == {4, 5}
    assert "Two of the three then fall back to 10 % once" in SAID
    after = [row[first:] for row, first in zip(percent, (percent > 11).argmax(axis=1), strict=True)]
    assert sorted(int((np.round(row) == 10).sum()) for row in after) == [0, 1, 1]
    assert (np.diff(percent[:, -3:]) > 0).all()


def test_the_readme_has_the_figures_of_the_archives(runs):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    row = re.search(
        r"\| here, AdamP, bf16 .*? \| 10 \| (\d) \| ([\d. ±]+) \| ([\d. ±]+) \|\n", text
    )
    for method, figure in (("vanilla", row[2]), ("rebias", row[3])):
        assert (figure, int(row[1])) == shown(runs, "0.997", method, "f", "unbiased")
    for name in ("results", "reproducing"):
        page = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
        assert re.findall(r"([\d.]+ ± [\d.]+) %", page)[:2] == [row[3], row[2]]
    said = " ".join(text.split())
    said_lead = re.search(r"the lead's 95 % interval is ([\d.]+) to ([\d.]+) points", said).groups()
    assert (
        said_lead == re.search(r"the 95 % interval of .*? is ([\d.]+) to ([\d.]+)", SAID).groups()
    )


def published(rho: float) -> dict[tuple[str, str], str]:
    """The published percentages on unbiased by source and method."""
    with (ROOT / "rebias_dist/reporting/published.csv").open(encoding="utf-8") as file:
        return {
            (row["source"], row["method"]): row["percent"]
            for row in csv.DictReader(file)
            if (row["dataset"], row["measure"]) == ("biased_mnist", "unbiased")
            and float(row["rho"] or 0) == rho
        }


def test_the_published_figures_beside_them_are_those_of_reports():
    found = published(0.997)
    rerun = "ML Reproducibility Challenge 2020"
    for said, source in (
        ("Bahng et al., ICML 2020", "Bahng et al., ICML 2020, table 1 (arXiv 1910.02806)"),
        (f"re-run, {rerun}", f"re-run of the paper, {rerun}"),
    ):
        vanilla, rebias = (found[source, method] for method in ("vanilla", "rebias"))
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"| {said}, Adam | 80 | 3 | {vanilla} | {rebias} |" in text
        both = rf"{vanilla} (for vanilla )?and {rebias}\b"
        assert re.search(both, SAID), both


def lead(by_method) -> tuple[str, ...]:
    """The mean lead of ReBias over vanilla in points, and Student's 95 % interval, seed by seed."""
    assert all(set(by_method[name].index) == {0, 1, 2} for name in ("rebias", "vanilla"))
    leads = 100 * (by_method["rebias"]["accuracy"] - by_method["vanilla"]["accuracy"])
    leads = leads.astype(float)
    half = stats.t.ppf(0.975, len(leads) - 1) * leads.std(ddof=1) / len(leads) ** 0.5
    mean = leads.mean()
    return tuple(f"{value:.1f}" for value in (mean, mean - half, mean + half))


def test_the_lead_and_the_conflicting_digits_are_those_of_the_archives(runs):
    mine = runs[(runs["network"] == "f") & (runs["split"] == "unbiased") & (runs["rho"] == 0.997)]
    by_method = {name: rows.set_index("seed") for name, rows in mine.groupby("method")}
    found = re.search(r"by ([\d.]+) points; the 95 % interval of .*? is ([\d.]+) to ([\d.]+)", SAID)
    assert found.groups() == lead(by_method)
    for said, column in (
        (r"vanilla is right on ([\d.]+) % of them and ReBias on ([\d.]+) %", "conflicting"),
        (r"class on ([\d.]+) % of them and ReBias on ([\d.]+) %", "follows_bias"),
    ):
        means = (by_method[name][column].astype(float).mean() for name in ("vanilla", "rebias"))
        assert re.search(said, SAID).groups() == tuple(f"{100 * mean:.1f}" for mean in means)
    of_rubi = by_method["rubi"][["accuracy", "follows_bias", "conflicting"]].astype(float)
    said = r"has ([\d.]+) %. It follows .*? ([\d.]+) % .*? only ([\d.]+) %"
    assert re.search(said, SAID).groups() == tuple(f"{100 * x:.1f}" for x in of_rubi.mean())
    of_mixin = by_method["learned_mixin"][["accuracy", "follows_bias", "conflicting"]].astype(float)
    said = r"also one seed, has ([\d.]+) %. It .*? on ([\d.]+) % of .*? right on ([\d.]+) %"
    assert re.search(said, SAID).groups() == tuple(f"{100 * x:.1f}" for x in of_mixin.mean())
    of_rebias = by_method["rebias"][["conflicting", "follows_bias"]].astype(float).mean()
    left = of_rebias["conflicting"] / (1 - of_rebias["follows_bias"])
    assert "it is right four times in five" in SAID
    assert left == pytest.approx(4 / 5, abs=0.05)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"the colour on {100 * of_rebias['follows_bias']:.1f} % of the digits" in readme


def test_the_oracles_are_those_of_the_archives():
    found = rebias_dist.results(ARCHIVES)
    oracles = found[(found["checkpoint"] == "oracle") & (found["rho"] == 0.997)]
    said = re.search(r"an oracle, has ([\d. ±]+) for vanilla and ([\d. ±]+) for ReBias", SAID)
    for figure, method in zip(said.groups(), ("vanilla", "rebias"), strict=True):
        assert figure == shown(oracles, "0.997", method, "f", "unbiased")[0]


def test_the_pair_at_995_is_that_of_the_archives(runs):
    mine = runs[(runs["network"] == "f") & (runs["split"] == "unbiased") & (runs["rho"] == 0.995)]
    vanilla, rebias = (
        shown(runs, "0.995", name, "f", "unbiased")[0] for name in ("vanilla", "rebias")
    )
    by_method = {name: rows.set_index("seed") for name, rows in mine.groupby("method")}
    found = re.search(
        r"0\.995 ReBias leads vanilla by ([\d.]+) points; .*? is ([\d.]+) to ([\d.]+\d)", SAID
    )
    assert found.groups() == lead(by_method)
    said = r"the colour on ([\d.]+) % of the conflicting digits and is right on ([\d.]+) % \(means"
    figures = by_method["rebias"][["follows_bias", "conflicting"]].astype(float).mean()
    assert re.search(said, SAID).groups() == tuple(f"{100 * x:.1f}" for x in figures)
    curve = np.mean(
        [
            read_curves(ARCHIVES / name, lambda tag: True)["unbiased/f_accuracy"][1]
            for name in by_method["rebias"]["run"]
        ],
        axis=0,
    )
    said = re.search(r"from ([\d.]+) % after epoch 4 to ([\d.]+) % after epoch 8", SAID)
    assert said.groups() == (f"{100 * curve[3]:.1f}", f"{100 * curve[7]:.1f}")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"0.995 vanilla has {vanilla} and ReBias {rebias} after 10 epochs (three seeds)" in readme
    )
    source = "Bahng et al., ICML 2020, table 1 (arXiv 1910.02806)"
    paper = published(0.995)
    theirs = paper[source, "vanilla"], paper[source, "rebias"]
    assert "the paper has {} and {} after 80".format(*theirs) in readme
    assert "{} for vanilla and {} for ReBias after 80 epochs".format(*theirs) in SAID
    for name, said in (
        ("results", f"At 0.995 it has {rebias} %, vanilla {vanilla} %"),
        ("reproducing", f"at 0.995 {rebias} % against {vanilla} %"),
    ):
        assert said in (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")


def test_the_pair_at_999_is_that_of_the_archives(runs):
    mine = runs[(runs["network"] == "f") & (runs["split"] == "unbiased") & (runs["rho"] == 0.999)]
    assert sorted(zip(mine["method"], mine["seed"], strict=True)) == [("rebias", 0), ("vanilla", 0)]
    by_method = mine.set_index("method")
    vanilla, rebias = (
        f"{100 * by_method.loc[name, 'accuracy']:.1f}" for name in ("vanilla", "rebias")
    )
    follows = f"{100 * by_method.loc['rebias', 'follows_bias']:.1f}"
    source = "Bahng et al., ICML 2020, table 1 (arXiv 1910.02806)"
    theirs = [published(0.999)[source, name] for name in ("vanilla", "rebias")]
    for page, said in (
        ("docs/full-size.md", f"One seed has {vanilla} % (vanilla) and {rebias} % (ReBias)"),
        ("docs/full-size.md", f"follows the colour on {follows} % of the conflicting digits. The"),
        ("docs/full-size.md", "{} for vanilla and {} for ReBias after 80".format(*theirs)),
        ("docs/results.md", f"it does not: one seed has {rebias} %, vanilla {vanilla} %"),
        ("docs/reproducing.md", f"Not at 0.999: {rebias} % against {vanilla} % (one seed)"),
        ("README.md", f"At 0.999 (one seed): {vanilla} and {rebias}."),
    ):
        assert said in " ".join((ROOT / page).read_text(encoding="utf-8").split())
