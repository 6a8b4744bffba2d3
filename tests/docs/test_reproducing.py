"""The published figures on the page about reproducing are those that reports show."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

import rebias_dist
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import to_yaml
from rebias_dist.reporting.metrics import read_curves
from tests import ROOT
from tests.docs.lines import commands_of_page

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


RESULTS = ROOT / "docs/results"
AT_FULL_SIZE = RESULTS / "reduced_schedule/reduced-rho0.997-rebias-seed0"


def settings_of(run: Path) -> dict[str, object]:
    """The configuration of an archived run, with dotted names."""
    text = (run / "config.yaml").read_text(encoding="utf-8")

    def dotted(value: object, name: str) -> Iterator[tuple[str, object]]:
        parts = value.items() if isinstance(value, dict) else ()
        parts = enumerate(value) if isinstance(value, list) else parts
        found = [one for key, part in parts for one in dotted(part, f"{name}.{key}")]
        yield from found or [(name[1:], value)]

    return dict(dotted(yaml.safe_load(text), ""))


def differences(one: Path, other: Path) -> set[str]:
    mine, theirs = settings_of(one), settings_of(other)
    return {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}


def test_the_optimizer_and_the_radii_are_beside_the_run_at_full_size():
    runs = {
        "AdamP, σ = 1": (AT_FULL_SIZE, set()),
        "Adam, σ = 1": (RESULTS / "ablations/adam-rho0.997-rebias-seed0", {"optimizer.name"}),
        "AdamP, σ by median": (
            RESULTS / "ablations/median-rho0.997-rebias-seed0",
            {"radius.f", "radius.g"},
        ),
    }
    _, _, *found = rows("setting")
    assert [row[0] for row in found] == list(runs)
    shown, percent, curves = {}, {}, {}
    for name, *figures in found:
        run, changed = runs[name]
        changed |= {"name", "log.every_steps"} if changed else set()
        assert differences(AT_FULL_SIZE, run) == changed
        table = rebias_dist.results(run)
        mine = table[(table["checkpoint"] == "last") & (table["split"] == "unbiased")]
        of_f = mine[mine["network"] == "f"].iloc[0]
        curves[name] = read_curves(run, lambda tag: True)
        percent[name] = 100 * np.array(curves[name]["unbiased/f_accuracy"][1])
        assert len(percent[name]) == 10
        last, error = 100 * of_f["accuracy"], 100 * of_f["standard_error"]
        shown[name] = f"{last:.1f}"
        expected = [f"{percent[name][7]:.1f}", f"{last:.1f} ({error:.1f})"]
        expected += [f"{100 * of_f[column]:.1f}" for column in ("follows_bias", "conflicting")]
        assert figures == expected
    adamp, adam, median = (shown[name] for name in runs)
    of_median = "AdamP, σ by median"
    assert {f"{value:.1f}" for value in percent[of_median]} == {median}
    sigma = [
        f"{curves[of_median][f'{network}/sigma'][1][epoch]:.1f}"
        for epoch in (0, -1)
        for network in ("f", "g0")
    ]
    pages = {
        name: " ".join((ROOT / f"docs/{name}.md").read_text(encoding="utf-8").split())
        for name in ("reproducing", "results", "full-size")
    }
    at_full_size = re.search(r"ReBias \| f \| 3 \| [^|]+ \| ([^|]+) \|", pages["full-size"])[1]
    for name, said in (
        ("reproducing", "Before the first one they are {} for f and {} for g, "
                        "before the last one {} and {}".format(*sigma)),
        ("reproducing", f"f follows the colour: it has {median} % after each of the ten epochs"),
        ("reproducing", f"all of ten epochs ({median} %; {adamp} % with σ = 1)"),
        ("reproducing", f"Adam has {adam} %. Three seeds of AdamP have {at_full_size}."),
        ("reproducing", f"{adam} % with Adam, {adamp} % with AdamP"),
        ("results", f"all of ten epochs ({median} %). {adam} % with Adam, {adamp} % with AdamP"),
        ("full-size", f"f has {median} % after each of the ten epochs"),
        ("full-size", f"it has {adam} %, where AdamP has {adamp} %"),
    ):  # fmt: skip
        assert said in pages[name]


COMMANDS = [
    command
    for command in commands_of_page(ROOT / "docs/results.md")
    if command.program == "rebias-train"
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words[-1])
def test_the_commands_of_single_runs_are_those_of_their_archives(command, tmp_path):
    config = parse_train(command.words).config
    (run,) = RESULTS.glob(f"*/{config.name}")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    # Where the digits lay, what decoded them and how often a line was written change no figure.
    assert differences(run, tmp_path) <= {"data.source", "data.decoder", "log.every_steps"}


def test_there_are_commands_of_single_runs():
    assert len(COMMANDS) == 3
