"""The evaluation command: runs and public checkpoints, on their own and on other shards."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import munch
import numpy as np
import pytest
import torch
import yaml

from rebias_dist.assemble import build_normalise, data_root
from rebias_dist.commands import evaluate
from rebias_dist.config.files import validate
from rebias_dist.data.splits import open_data
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.splits import evaluate_splits
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.reporting.comparison import compare
from rebias_dist.reporting.disagreements import Disagreements, disagreements
from rebias_dist.reporting.runs import read_run
from rebias_dist.runs.networks import build_networks
from rebias_dist.step.precision import Precision
from rebias_dist.train import main
from tests.data.test_watermark import make_font
from tests.evaluation.photographs import write

DIGITS = [str(digit) for digit in range(10)]


def settings(few_digits: Path, folder: Path) -> dict:
    return {
        "runs_dir": str(folder),
        "global_batch": 48,
        "micro_batch": 12,
        "max_steps": 9,
        "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
        "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
        "radius": {"f": 1.0, "g": 1.0},
        "data": {"source": str(few_digits), "image_size": 8, "rho": 0.8},
    }


@pytest.fixture(scope="module")
def runs(few_digits, tmp_path_factory) -> Path:
    """``a`` with a best by selection, ``oracle`` with one by test data, ``biased`` without f."""
    folder = tmp_path_factory.mktemp("runs")
    values = settings(few_digits, folder)
    main(validate({**values, "name": "a"}))
    data = {**values["data"], "selection": "none"}
    main(validate({**values, "name": "oracle", "max_steps": 12, "data": data}))
    main(validate({**values, "name": "biased", "max_steps": 2, "method": {"name": "biased"}}))
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        evaluate.cli([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


def found(capsys, *arguments: object) -> list[dict]:
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


# ---------------------------------------------------------------------------- runs


def test_several_runs_have_the_figures_of_their_results(runs, capsys):
    entries = found(capsys, runs / "a", runs / "oracle", runs / "biased")
    assert [(Path(e["checkpoint"]).name, e["choice"]) for e in entries] == [
        ("a", "last"),
        ("a", "best"),
        ("oracle", "last"),
        ("oracle", "oracle"),
        ("biased", "last"),
        ("biased", "best"),
    ]
    for entry in entries:
        results = json.loads((Path(entry["checkpoint"]) / "results.json").read_text())
        choice = "last" if entry["choice"] == "last" else "best"
        expected = results["checkpoints"][choice]
        assert entry["step"] == expected["step"]
        for split, figures in expected["splits"].items():
            assert figures.items() <= entry["splits"][split].items()
        assert entry["corruptions"] == {}


def test_the_table_says_who_chose_and_lacks_nothing(runs, capsys):
    code, out, _ = run(capsys, runs / "oracle", runs / "biased")
    assert code == 0
    assert "last, step 12, rebias" in out
    assert "ORACLE, chosen on the test data themselves; report last" in out
    assert "best on selection data, step" in out
    lines = [line.split() for line in out.splitlines()]
    results = json.loads((runs / "biased/results.json").read_text())
    accuracy = results["checkpoints"]["last"]["splits"]["rho0"]["networks"]["g0"]["accuracy"]
    row = next(line for line in lines if line[:4] == ["rho0", "120", "10.0", "g0"])
    assert row[4] == f"{100 * accuracy:.1f}"
    assert row[-1] == "–"  # no f that g could depend on


def test_csv_has_a_line_for_every_figure(runs, capsys):
    code, out, _ = run(capsys, runs / "a", "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    results = json.loads((runs / "a/results.json").read_text())
    chosen = {"choice": "last", "split": "unbiased", "network": "f"}
    mine = {r["figure"]: r for r in rows if chosen.items() <= r.items()}
    figures = results["checkpoints"]["last"]["splits"]["unbiased"]["networks"]["f"]
    for name in ("accuracy", "conflicting", "aligned", "follows_bias"):
        assert float(mine[name]["value"]) == figures[name]
    interval = figures["intervals"]["accuracy"]
    assert [float(mine["accuracy"][end]) for end in ("low", "high")] == interval
    assert mine["unbiased"]["value"] == ""  # no texture clusters
    assert [float(mine[f"accuracy of {d}"]["value"]) for d in DIGITS] == figures["by_class"]
    hsic = [r for r in rows if (r["figure"], r["network"], r["choice"]) == ("hsic", "g0", "last")]
    assert [r["split"] for r in hsic] == ["biased", "unbiased", "rho0"]


def test_one_step_of_a_run(runs, capsys):
    (folder, *_) = sorted((runs / "a/checkpoints").iterdir())
    (entry,) = found(capsys, folder)
    assert (entry["choice"], entry["step"]) == ("step", int(folder.name[5:]))


# ---------------------------------------------------------------------------- other shards


def test_other_shards_with_clusters_biases_and_some_of_the_classes(runs, tmp_path, capsys):
    labels = [i % 3 for i in range(81)]
    val = write(tmp_path, "val", labels, classes=DIGITS, with_clusters=True, side=8)
    some = write(tmp_path / "c", "fog-3", labels, classes=("7", "1", "4"), side=8)
    entries = found(capsys, runs / "a", "--on", val, "--on", f"seven={some}")
    for entry in entries:
        assert list(entry["splits"]) == ["val", "seven"]
        f = entry["splits"]["val"]["networks"]["f"]
        assert f["by_class"][3:] == [None] * 7
        assert f["unbiased"] is not None
        assert entry["splits"]["val"]["dataset"] == "insects"
        seven = entry["splits"]["seven"]
        assert seven["classes"] == ["7", "1", "4"]
        assert np.shape(seven["networks"]["g0"]["confusion"]) == (3, 3)
        f_on_fog = seven["networks"]["f"]["accuracy"]
        assert entry["corruptions"]["f"]["corruptions"]["fog"]["severities"] == {"3": f_on_fog}
    # A recycle bin of a NAS beside the splits is none of them.
    shutil.copytree(val, tmp_path / "#recycle")
    below = found(capsys, runs / "a", "--on", tmp_path, "--on", f"c={tmp_path / 'c'}")
    assert list(below[0]["splits"]) == ["val", "c/fog-3"]
    code, out, _ = run(capsys, runs / "a", "--on", val, "--on", some)
    assert code == 0
    assert "81 in 3 classes" in out
    assert "INCOMPLETE: 1 of the benchmark's 75 splits" in out


def test_shards_that_do_not_fit_are_one_line(runs, tmp_path, capsys):
    other = write(tmp_path, "val", [0, 1, 2], side=8)
    empty = tmp_path / "empty"
    empty.mkdir()
    for on, named in (
        (other, "its class 'ant' is none of the 10"),
        (empty, "there are no shards here"),
        (tmp_path / "nowhere", "there are no shards here"),
        ("https://example.org/pets/val", "must be a folder of this machine"),
    ):
        code, out, err = run(capsys, runs / "a", "--on", on)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert named in err


# ---------------------------------------------------------------------------- what is no run


def test_each_split_is_evaluated_with_the_watermark_too(runs, tmp_path, capsys):
    font = make_font(tmp_path / "font.ttf", "捷径")
    plain = found(capsys, runs / "a")
    both = found(capsys, runs / "a", "--watermark", font)
    for before, after in zip(plain, both, strict=True):
        splits = list(before["splits"])
        assert list(after["splits"]) == [x for s in splits for x in (s, f"{s}+watermark")]
        assert {split: after["splits"][split] for split in splits} == before["splits"]
    (one, other) = (both[0]["splits"][f"unbiased{suffix}"] for suffix in ("", "+watermark"))
    assert one["networks"] != other["networks"]  # half of each digit is under the text
    gap = other["networks"]["f"]["accuracy"] - one["networks"]["f"]["accuracy"]
    code, out, _ = run(capsys, runs / "a", "--watermark", font)
    assert code == 0
    assert f"watermark on unbiased, f: accuracy {100 * gap:+.1f} percentage points" in out
    code, out, err = run(capsys, runs / "a", "--watermark", "nowhere.otf")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "nowhere.otf: no font can be read" in err


def test_a_damaged_run_does_not_hide_the_others(runs, tmp_path, capsys):
    for path in shutil.copytree(runs / "a", tmp_path / "damaged").glob("checkpoints/*/state.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    code, out, err = run(capsys, tmp_path / "damaged", runs / "biased", "--json")
    assert [Path(e["checkpoint"]).name for e in json.loads(out)] == ["biased", "biased"]
    assert (code, err.count("\n")) == (3, 1)
    assert "damaged" in err


def test_an_unfinished_run_says_so_and_has_its_last_checkpoint(runs, tmp_path, capsys):
    folder = shutil.copytree(runs / "a", tmp_path / "a")
    (folder / "results.json").unlink()
    code, out, _ = run(capsys, folder)
    assert code == 0
    assert out.count("UNFINISHED run") == 2
    shutil.rmtree(folder / "checkpoints")
    code, out, err = run(capsys, folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no last checkpoint yet" in err


def test_another_data_set_in_place_of_the_runs_own_is_refused(runs, few_digits, tmp_path, capsys):
    other = data_root(validate({"data": {"source": str(few_digits), "image_size": 9}}))
    code, out, err = run(capsys, runs / "a", "--data.root", other)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is not the one that the run was started with" in err


def test_an_index_with_other_labels_is_noticed(runs, few_digits, tmp_path, monkeypatch, capsys):
    """Its images still have their hashes: only the index itself tells that accuracies are wrong."""
    kept = data_root(validate({"data": settings(few_digits, tmp_path)["data"]}))
    cache = Path(os.environ["REBIAS_CACHE"])
    root = shutil.copytree(kept, tmp_path / "cache" / kept.relative_to(cache))
    monkeypatch.setenv("REBIAS_CACHE", str(tmp_path / "cache"))
    ((comparison,), _) = compare([read_run(runs / "a")])
    (group,) = comparison.groups
    assert isinstance(disagreements(group, "unbiased"), Disagreements)
    path = root / "unbiased" / "index.npy"
    index = np.load(path)
    index["label"] = index["label"][::-1].copy()
    np.save(path, index)
    assert "unbiased/index.npy: is not the index" in disagreements(group, "unbiased")
    for words in ([], ["--data.root", root], ["--on", root / "unbiased"]):
        code, out, err = run(capsys, runs / "a", *words)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert "unbiased/index.npy: is not the index" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["."], "no run here"),
        (["file.pth"], "--config"),
        (["file.pth", "--config", "biased_mnist/demo"], "file.pth"),
        ([".", "--config", "biased_mnist/demo"], "its own configuration"),
        ([".", "--json", "--csv"], "give one of them"),
        ([], "RUN_OR_FILE"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pth").write_bytes(b"not a checkpoint")
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert named in err


def test_help_lists_the_fields_that_an_evaluation_uses(capsys):
    listed = set(re.findall(r"^  --([a-z][\w.]*)", run(capsys, "--help")[1], re.MULTILINE))
    assert {"f.width", "g.0.kernel_size", "data.root", "data.source", "evaluate.batch"} <= listed
    assert {"method.name", "precision", "device", "data.crop"} <= listed
    other = {
        name.partition(".")[0] for name in listed - {"on", "watermark", "json", "csv", "config"}
    }
    assert other == {"precision", "device", "method", "f", "g", "data", "evaluate"}
    assert not {"data.window", "data.verify", "evaluate.every_epochs", "method.lambda_f"} & listed


def test_fields_that_help_does_not_list_are_accepted(tmp_path, capsys):
    (tmp_path / "none.pth").write_bytes(b"")
    flags = ["--config", "biased_mnist/demo", "--optimizer.lr", "0.5"]
    assert "none.pth' is refused" in run(capsys, tmp_path / "none.pth", *flags)[2]


def test_a_checkpoint_is_described_by_a_configuration_whatever_its_shards_were_made_of(
    tmp_path, capsys
):
    (tmp_path / "none.pth").write_bytes(b"")
    flags = ["--config", "biased_mnist/demo", "--data.root", "shards/mine"]
    assert "none.pth' is refused" in run(capsys, tmp_path / "none.pth", *flags)[2]


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom rebias_dist.commands.evaluate import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    assert "--on [NAME=]FOLDER" in done.stdout


# ---------------------------------------------------------------------------- public checkpoints


def public_file(path: Path, networks: dict) -> None:
    """Write networks as the public code does."""

    def prefixed(network):
        return {f"module.{key}": value for key, value in network.state_dict().items()}

    torch.save(
        {
            "f_net": prefixed(networks["f"]),
            "g_nets": [prefixed(networks["g0"])],
            "f_optimizer": {},
            "g_optimizer": {},
            "f_lr_scheduler": {},
            "g_lr_scheduler": {},
            "options": munch.munchify({"lr": 0.001, "nested": {"n_epochs": 80}}),
            "metadata": {"epoch": 7, "best_acc": np.float64(0.5)},
        },
        path,
    )


def test_a_public_checkpoint_has_the_figures_of_its_networks(small_run, tmp_path, capsys):
    config = validate(small_run)
    precision = Precision(config.precision, torch.device("cpu"))
    torch.manual_seed(3)
    networks = build_networks(config, 10, precision)
    public = tmp_path / "public.pth"
    public_file(public, networks)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_run))
    (entry,) = found(capsys, public, "--config", file)
    data = open_data(config, data_root(config))
    normalise = build_normalise(data, precision)
    evaluator = Evaluator.of(config, networks, normalise, precision, Consensus(), data.rule)
    expected = evaluate_splits(evaluator, data.tests, None, with_intervals=True)
    assert (entry["choice"], entry["step"]) == ("public", 7)
    for split, figures in json.loads(json.dumps(expected)).items():
        assert figures.items() <= entry["splits"][split].items()

    code, _, err = run(capsys, public, "--config", file, "--f.kernel_size", "5")
    assert (code, err.count("\n")) == (2, 1)
    assert "extracter.0.weight" in err
    content = public.read_bytes()
    public.write_bytes(content[: len(content) // 2])
    code, _, err = run(capsys, public, "--config", file)
    assert (code, err.count("\n")) == (2, 1)
    assert "damaged" in err


def test_a_public_checkpoint_on_shards_alone(tmp_path, capsys):
    """Nine classes of ImageNet are known without the shards that it was trained on."""
    config = {
        "method": {"name": "vanilla"},
        "data": {"dataset": "imagenet9", "root": str(tmp_path / "nowhere")},
        "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
    }
    networks = build_networks(validate(config), 9, Precision("float32", torch.device("cpu")))
    public_file(tmp_path / "public.pth", {"f": networks["f"], "g0": networks["f"]})
    del config["data"]["root"]
    (tmp_path / "nine.yaml").write_text(yaml.safe_dump(config))
    classes = ("dog", "cat", "frog", "turtle", "bird", "monkey", "fish", "crab", "insect")
    labels = [label for label in range(9) if classes[label] != "crab"] * 3
    folder = write(tmp_path, "test", labels, classes=classes, dataset="imagenet9-a")
    arguments = (tmp_path / "public.pth", "--config", tmp_path / "nine.yaml", "--on", folder)
    (entry,) = found(capsys, *arguments)
    f = entry["splits"]["test"]["networks"]["f"]
    assert f["by_class"][7] is None
    assert None not in f["by_class"][:7]
    assert f["accuracy"] == f["correct"] / 24
