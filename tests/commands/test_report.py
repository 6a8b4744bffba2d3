"""The report against figures computed here, and against damaged folders."""

import csv
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rebias_dist.commands import report
from rebias_dist.config.files import to_yaml, validate
from rebias_dist.errors import ConfigError
from rebias_dist.evaluation.text import CHOICES
from rebias_dist.reporting.comparison import Comparison, Group, compare, leads
from rebias_dist.reporting.runs import read_run


def write_run(
    folder: Path,
    values: dict[str, Any],
    correct: dict[str, dict[str, int]],
    *,
    samples: int = 1000,
    classes: int = 10,
    last: dict[str, dict[str, int]] | None = None,
) -> Path:
    """Write a finished run whose networks have so many correct answers: {split: {network: n}}."""
    config = validate({"name": folder.name, **values})

    def checkpoint(step: int, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
        splits = {
            split: {
                "samples": samples,
                "hsic": [0.01],
                "networks": {
                    name: {"accuracy": n / samples, "correct": n, "confusion": []}
                    for name, n in networks.items()
                },
            }
            for split, networks in counts.items()
        }
        return {"step": step, "splits": splits}

    results = {
        "format": 1,
        "run": folder.name,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "classes": [str(i) for i in range(classes)],
        "chosen_on": "oracle" if config.data.selection == "none" else "selection",
        "steps": 840,
        "checkpoints": {"best": checkpoint(420, correct), "last": checkpoint(840, last or correct)},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "state.json").write_text(json.dumps({"status": "finished"}), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def method(name: str, **values: Any) -> dict[str, Any]:
    return {"method": {"name": name}, **values}


def compared(*folders: Path) -> tuple[list[Comparison], list[str]]:
    return compare([read_run(folder) for folder in folders])


def groups_of(*folders: Path) -> tuple[list[Group], list[str]]:
    comparisons, notes = compared(*folders)
    return [group for runs in comparisons for group in runs.groups], notes


def row(text: str, *first: str) -> list[str]:
    """Return the further cells of the line whose first cells are these."""
    rows = [re.split(" {2,}", line) for line in text.splitlines()]
    (found,) = [cells for cells in rows if tuple(cells[: len(first)]) == first]
    return found[len(first) :]


def test_one_seed_has_the_binomial_standard_error(tmp_path, capsys):
    write_run(tmp_path / "a", method("rebias"), {"unbiased": {"f": 640, "g0": 100}})
    assert report.main([str(tmp_path / "a"), "--text"]) == 0
    text = capsys.readouterr().out
    error = 100 * math.sqrt(0.64 * 0.36 / 1000)
    assert row(text, "rebias", "last", "f") == ["1", f"64.0 ({error:.1f})"]
    assert "unbiased (n = 1,000)" in text
    assert "chance 10.0" in text


def test_several_seeds_have_mean_and_standard_deviation_of_the_library(tmp_path, capsys):
    counts = [612, 655, 700]
    for seed, n in enumerate(counts):
        values = method("rebias", seed=seed, data={"seed": seed})
        write_run(tmp_path / f"s{seed}", values, {"unbiased": {"f": n, "g0": 100 + seed}})
    assert report.main([str(tmp_path), "--text"]) == 0
    mean, spread = (f([n / 10 for n in counts]) for f in (statistics.mean, statistics.stdev))
    cells = row(capsys.readouterr().out, "rebias", "last", "f")
    assert cells == ["3", f"{mean:.1f} ± {spread:.1f}"]


def test_a_repeated_seed_counts_once(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, method("vanilla", seed=3), {"unbiased": {"f": 500}})
    groups, notes = groups_of(tmp_path / "a", tmp_path / "b")
    assert len(groups) == 1
    assert [run.name for run in groups[0].runs] == ["a"]
    assert notes == ["b: left out, it repeats the seeds of a"]


def test_runs_of_different_settings_are_not_averaged(tmp_path):
    for seed, lam in enumerate((1.0, 0.5)):
        values = {"method": {"name": "rebias", "lambda_f": lam}, "seed": seed}
        write_run(tmp_path / f"r{seed}", values, {"unbiased": {"f": 500 + seed, "g0": 1}})
    groups, _ = groups_of(tmp_path / "r0", tmp_path / "r1")
    labels = [group.label for group in groups]
    assert labels == ["rebias, method.lambda_f 1.0", "rebias, method.lambda_f 0.5"]


def test_runs_of_different_length_are_not_averaged(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"r{seed}", method("vanilla", seed=seed), {"unbiased": {"f": 500}})
    text = (tmp_path / "r1/results.json").read_text()
    (tmp_path / "r1/results.json").write_text(text.replace('"steps": 840', '"steps": 3'))
    groups, _ = groups_of(tmp_path / "r0", tmp_path / "r1")
    assert [group.label for group in groups] == ["vanilla, steps 840", "vanilla, steps 3"]


def write_options(root: Path, **options: Any) -> str:
    """Write what the report reads of shards: what their manifest says of how they were made."""
    (root / "train").mkdir(parents=True)
    (root / "train/manifest.json").write_text(json.dumps({"options": options}))
    return str(root)


def test_runs_on_different_data_are_not_averaged(tmp_path):
    made = {"image_size": 28, "confusing_colours": 9, "seed": 0}
    roots = [
        write_options(tmp_path / "a", rho=0.999, **made),
        write_options(tmp_path / "b", rho=0.95, **made),
        write_options(tmp_path / "c", rho=0.95, **{**made, "image_size": 14}),
        str(tmp_path / "absent"),
        str(tmp_path / "absent too"),
    ]
    runs = []
    for number, root in enumerate(roots):
        values = method("rebias", data={"root": root})
        counts = {"unbiased": {"f": 100 * number, "g0": 100}}
        runs.append(write_run(tmp_path / f"runs/{number}", values, counts))
    groups, notes = groups_of(*runs)
    assert [[run.name for run in group.runs] for group in groups] == [[n] for n in "01234"]
    assert notes == []
    assert len({group.label for group in groups}) == len(roots)
    assert "rebias, data.rho 0.999, " in groups[0].label
    assert 'data.rho "unknown"' in groups[3].label
    mlxtends = write_run(tmp_path / "runs/m", method("rebias"), {"unbiased": {"f": 1}})
    mnists = method("rebias", seed=1, data={"source": "mnist"})
    assert len(groups_of(mlxtends, write_run(tmp_path / "runs/n", mnists, {"biased": {}}))[0]) == 2


def test_shards_that_differ_in_their_seed_alone_are_seeds_of_one_setting(tmp_path):
    """As ``data.seed`` is, where the run makes its data itself; the folders may be anywhere."""
    runs = []
    for seed, n in enumerate((500, 600)):
        root = write_options(tmp_path / f"shards{seed}", rho=0.997, image_size=28, seed=seed)
        for name, of_method in (("vanilla", n), ("rebias", n + 50)):
            values = method(name, data={"root": root})
            run = tmp_path / f"runs/{name}{seed}"
            runs.append(write_run(run, values, {"unbiased": {"f": of_method}}))
    groups, notes = groups_of(*runs)
    assert [(group.label, len(group.runs)) for group in groups] == [("vanilla", 2), ("rebias", 2)]
    assert notes == []
    (lead,) = leads(compared(*runs)[0][0].frame, "unbiased").itertuples()
    assert (len(lead.values), lead.mean) == (2, pytest.approx(0.05))


def test_what_does_not_decide_the_weights_does_not_split_a_group(tmp_path):
    for seed in (0, 1):
        values = method("vanilla", seed=seed, runs_dir=f"elsewhere{seed}", data={"workers": seed})
        write_run(tmp_path / f"r{seed}", values, {"unbiased": {"f": 500}})
    assert len(groups_of(tmp_path / "r0", tmp_path / "r1")[0]) == 1


def test_networks_that_a_method_lacks_have_no_row(tmp_path, capsys):
    write_run(tmp_path / "v", method("vanilla"), {"biased": {"f": 900}})
    write_run(tmp_path / "b", method("biased"), {"biased": {"g0": 990}})
    assert report.main([str(tmp_path), "--text"]) == 0
    text = capsys.readouterr().out
    assert row(text, "vanilla", "last", "f") == ["1", "90.0 (0.9)"]
    assert row(text, "biased", "last", "g0") == ["1", "99.0 (0.3)"]
    assert "–" not in text


def test_best_and_last_are_told_apart_and_an_oracle_is_marked(tmp_path, capsys):
    values = method("vanilla", data={"selection": "none"})
    write_run(tmp_path / "v", values, {"unbiased": {"f": 900}}, last={"unbiased": {"f": 500}})
    assert report.main([str(tmp_path / "v"), "--text"]) == 0
    text = capsys.readouterr().out
    assert row(text, "vanilla", CHOICES["oracle"], "f") == ["1", "90.0 (0.9)"]
    assert row(text, "vanilla", "last", "f") == ["1", "50.0 (1.6)"]


def damage_missing_results(run: Path) -> None:
    (run / "results.json").unlink()


def damage_truncated(run: Path) -> None:
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text[: len(text) // 2])


def damage_binary(run: Path) -> None:
    (run / "results.json").write_bytes(b"\xff\xfe\x00")


def damage_deep(run: Path) -> None:
    (run / "results.json").write_text("[" * 100_000)


def damage_deep_state(run: Path) -> None:
    (run / "state.json").write_text("[" * 100_000)


def damage_unfinished(run: Path) -> None:
    (run / "state.json").write_text('{"status": "running"}')


def damage_no_state(run: Path) -> None:
    (run / "state.json").unlink()


def damage_config(run: Path) -> None:
    (run / "config.yaml").write_text("epochs: [")


def damage_cut_config(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("data:")])


def damage_empty_config(run: Path) -> None:
    (run / "config.yaml").write_text("")


def damage_no_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def damage_false_accuracy(run: Path) -> None:
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace('"correct": 640', '"correct": 641'))


def damage_nan(run: Path) -> None:
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace("0.64", "NaN"))


def damage_bias_counts(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    for checkpoint in results["checkpoints"].values():
        network = checkpoint["splits"]["unbiased"]["networks"]["f"]
        network |= {"bias_count": [[5, 5]], "bias_correct": [[5]]}
    (run / "results.json").write_text(json.dumps(results))


def damage_other_method(run: Path) -> None:
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace('"vanilla"', '"rebias"'))


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__.removeprefix("damage_"))
def test_a_run_without_valid_results_gets_a_line_and_no_figure(tmp_path, capsys, damage):
    for seed in (0, 1):
        values = method("vanilla", seed=seed)
        write_run(tmp_path / f"run{seed}", values, {"unbiased": {"f": 640 - 300 * seed}})
    damage(tmp_path / "run0")
    arguments = [str(tmp_path / "run0"), str(tmp_path / "run1"), "--text"]
    assert report.main(arguments) == 0
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("without figures: run0: ")]
    assert len(line) < 400
    assert "34.0" in text
    assert "64.0" not in text
    # Alone, it is a report without results: no crash, nothing written, and a code that says so.
    assert report.main([str(tmp_path / "run0"), "--out", str(tmp_path / "out")]) == 1
    assert "run0" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_missing_seeds_show_in_the_count(tmp_path, capsys):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"r{seed}", method("vanilla", seed=seed), {"unbiased": {"f": 500}})
    damage_unfinished(tmp_path / "r2")
    assert report.main([str(tmp_path), "--text"]) == 0
    assert row(capsys.readouterr().out, "vanilla", "last", "f")[0] == "2 of 3"


def test_csv_holds_every_figure_and_the_picture_is_one(tmp_path, capsys):
    splits = {"biased": {"f": 990, "g0": 995}, "unbiased": {"f": 640, "g0": 100}}
    write_run(tmp_path / "runs/a", method("rebias"), splits)
    write_run(tmp_path / "runs/b", method("vanilla"), {k: {"f": v["f"]} for k, v in splits.items()})
    out = tmp_path / "out"
    assert report.main([str(tmp_path / "runs"), "--out", str(out), "--name", "demo"]) == 0
    with (out / "demo.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(r["run"], r["checkpoint"], r["split"], r["network"]): int(r["correct"]) for r in rows}
    expected = {
        (run, checkpoint, split, network): n
        for run, networks in (("a", ("f", "g0")), ("b", ("f",)))
        for checkpoint in ("best", "last")
        for split, counts in splits.items()
        for network, n in counts.items()
        if network in networks
    }
    assert found == expected
    assert all(float(r["accuracy"]) == int(r["correct"]) / 1000 for r in rows)
    with Image.open(out / "demo.png") as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    present = {colour for _, colour in colours}
    # The background is light; f (blue) and g (orange) are both there.
    assert max(colours)[1] == (255, 255, 255)
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= present


PROTOCOL = {
    "method": {"name": "vanilla"},
    "micro_batch": 256,
    "optimizer": {"name": "adam"},
    "radius": {"f": 1.0, "g": 1.0},
    "data": {"selection": "none", "rho": 0.997, "source": "mnist"},
}


@pytest.mark.parametrize(
    ("change", "samples", "shown"),
    [
        ({}, 10_000, True),
        ({}, 1_000, False),
        ({"epochs": 10}, 10_000, False),
        ({"micro_batch": 32}, 10_000, False),
        ({"optimizer": {"name": "adamp"}}, 10_000, False),
        ({"data": {**PROTOCOL["data"], "rho": 0.95}}, 10_000, False),
        ({"data": {"rho": 0.997, "source": "mnist"}}, 10_000, False),
    ],
)
def test_published_figures_only_beside_the_same_protocol(tmp_path, capsys, change, samples, shown):
    values = {**PROTOCOL, **change}
    write_run(tmp_path / "v", values, {"unbiased": {"f": samples // 2}}, samples=samples)
    assert report.main([str(tmp_path / "v"), "--text"]) == 0
    assert ("published 33.4" in capsys.readouterr().out) is shown


def test_the_error_of_one_run_follows_its_size(tmp_path):
    errors = []
    for name, samples in (("small", 100), ("large", 10_000)):
        counts = {"unbiased": {"f": samples // 2}}
        write_run(tmp_path / name, method("vanilla"), counts, samples=samples)
        (runs,), _ = compared(tmp_path / name)
        errors.append(runs.figure(runs.groups[0], "last", "unbiased", "f").error)
    assert errors == pytest.approx([0.05, 0.005])


def test_a_folder_that_does_not_exist_is_wrong_use(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        report.main([str(tmp_path / "absent")])


@pytest.mark.parametrize("heavy", ["torch", "pandas", "matplotlib"])
def test_help_needs_nothing_heavy(heavy):
    modules = "rebias_dist, rebias_dist.commands.report, launch.commands.sweep"
    code = f"import sys, {modules}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_report_imports_no_torch(tmp_path):
    write_run(tmp_path / "a", method("rebias"), {"unbiased": {"f": 500, "g0": 100}})
    code = "import sys; from rebias_dist.commands.report import main; main(sys.argv[1:]); "
    command = [sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"]
    arguments = [str(tmp_path / "a"), "--out", str(tmp_path / "out")]
    assert subprocess.run([*command, *arguments], check=False).returncode == 0
