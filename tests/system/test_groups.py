"""From a folder of shards with a planted background to the worst group in a report."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import rebias_dist
from rebias_dist.commands import evaluate, report
from tests.data.attribute_splits import write_attributes
from tests.system.test_train import torchrun

SIZES = {"train": 64, "selection": 60, "test": 96}
LEFT_OUT = "test: the worst group leaves out groups of fewer than 10 images: (landbird, roofs) 4"
BIRDS, PLACES = ("landbird", "waterbird"), ("flowers", "roofs")


def picture(rng, label: int, place: int) -> Image.Image:
    """Return a bright bar, upright for landbirds, on a crop of one of two photographs."""
    photograph = load_sample_image(("flower.jpg", "china.jpg")[place])
    height, width = 20, (20, 24)[int(rng.integers(2))]
    top, left = rng.integers(0, 300), rng.integers(0, 500)
    pixels = photograph[top : top + height, left : left + width].copy()
    y, x = rng.integers(4, 8, 2)
    bar = (slice(y, y + 10), slice(x, x + 4)) if label == 0 else (slice(y, y + 4), slice(x, x + 10))
    pixels[bar] = (255, 230, 40)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with shards and with a finished run of each method on two ranks."""
    folder = tmp_path_factory.mktemp("birds")
    rng = np.random.default_rng(0)
    for split, n in SIZES.items():
        labels = [i % 2 for i in range(n)]
        others = rng.random(n) < (0.15 if split == "train" else 0.5)
        if split == "test":
            others[::2] = np.arange(n // 2) < 4  # landbirds on roofs
        places = [int(label != other) for label, other in zip(labels, others, strict=True)]
        images = [picture(rng, *pair) for pair in zip(labels, places, strict=True)]
        values = {"place": [PLACES[value] for value in places]}
        # The test split has the values in another order.
        names = {"place": PLACES[::-1] if split == "test" else PLACES}
        write_attributes(
            folder / "shards", split, labels, values, names=names, classes=BIRDS, images=images
        )
    small = ["--f.name", "simple_convnet", "--f.width", "0.25", "--data.crop", "16"]
    small += ["--g.0.name", "simple_convnet", "--g.0.kernel_size", "1", "--g.0.width", "0.25"]
    small += ["--epochs", "2", "--global-batch", "16", "--micro-batch", "8", "--data.resize", "18"]
    said = {}
    for method in ("rebias", "group_dro"):
        named = ["--method", method, "--name", method, "--evaluate.select", "worst_group"]
        done = torchrun(2, "--data.root", "shards", *small, *named, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
        said[method] = done.stdout + done.stderr
    return folder, said


def scores(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_run_says_what_it_read_and_by_what_it_chose(place):
    folder, said = place
    for text in said.values():
        assert "data set birds, 2 classes (landbird, waterbird), 64 training images" in text
        assert "they differ, so data.augmentation is crop_flip" in text
        assert "landbird: flowers, waterbird: roofs" in text
        assert "best: chosen on selection data by the accuracy of the worst group" in text
        assert "selection, f: accuracy 0." in text
        assert "worst group: of 10 images or more" in text
        assert f"* {LEFT_OUT}\n" in text
        (row,) = (line for line in text.splitlines() if " last " in line and " f " in line)
        assert re.search(r"0\.\d{3}\* \[0\.\d{3}, \d\.\d{3}\] \w+bird, \w+$", row)
    lines = (folder / "runs/rebias/metrics.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if "selection/f_worst_group_accuracy" in line]
    assert len(found) == 2
    for line in found:
        groups = [value for tag, value in line.items() if tag.startswith("selection/f_group_")]
        assert len(groups) == 4
        assert line["selection/f_worst_group_accuracy"] == min(groups)
    best = scores(folder / "runs/rebias")["checkpoints"]["best"]["step"]
    tag = "selection/f_worst_group_accuracy"
    assert max(line[tag] for line in found) == next(x[tag] for x in found if x["step"] == best)


def test_groups_are_those_of_the_predictions(place):
    folder, _ = place
    content = scores(folder / "runs/rebias")
    assert content["bias"]["aligned"] == dict(zip(BIRDS, PLACES, strict=True))
    for network in content["checkpoints"]["last"]["splits"]["test"]["networks"].values():
        groups = network["groups"]
        assert sum(group["samples"] for group in groups) == 96
        assert sum(group["correct"] for group in groups) == network["correct"]
        by_name = {(group["class"], group["value"]): group for group in groups}
        aligned = [by_name[pair] for pair in zip(BIRDS, PLACES, strict=True)]
        samples = sum(group["samples"] for group in aligned)
        assert network["aligned_samples"] == samples
        correct = sum(group["correct"] for group in aligned)
        assert network["aligned"] == pytest.approx(correct / samples)
        worst = min(group["accuracy"] for group in groups if group["samples"] >= 10)
        assert network["worst_group"]["accuracy"] == worst


def test_evaluate_follows_the_rule_of_the_run_without_its_training_shards(place, tmp_path, capsys):
    folder, _ = place
    shutil.copytree(folder / "shards/test", tmp_path / "elsewhere")
    shutil.copytree(folder / "runs/rebias", tmp_path / "runs/rebias")
    config = tmp_path / "runs/rebias/config.yaml"
    config.write_text(config.read_text().replace(str(folder / "shards"), str(tmp_path / "gone")))
    for form in ("--json", "--text"):
        words = [str(tmp_path / "runs/rebias"), "--on", f"test={tmp_path / 'elsewhere'}"]
        with pytest.raises(SystemExit) as left:
            evaluate.cli(words + ([form] if form == "--json" else []))
        out = capsys.readouterr().out
        assert not left.value.code
        if form == "--json":
            expected = scores(folder / "runs/rebias")["checkpoints"]
            for entry in json.loads(out):
                splits = expected["last" if entry["choice"] == "last" else "best"]["splits"]
                assert splits["test"].items() <= entry["splits"]["test"].items()
                assert (entry["select"], entry["bias"]["attribute"]) == ("worst_group", "place")
        else:
            assert "best on selection data (by the accuracy of the worst group)" in out
            assert "bias: place; aligned, from the training images: landbird: flowers" in out
            assert out.count("test, f: groups") == 2
            assert out.count(f"\n* {LEFT_OUT}\n") == 2
            assert len(re.findall(r"[\d.]+\* \[[\d.]+, [\d.]+\] \w+bird/", out)) == 4
            assert len(re.findall(r"\nlandbird +roofs +4\* ", out)) == 4


def test_the_report_shows_the_worst_group(place, tmp_path, capsys):
    folder, _ = place
    assert report.main([str(folder / "runs"), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "worst group" in text
    assert "Accuracy in percent by group of class and bias on test" in text
    assert f"\n* {LEFT_OUT}\n" in text
    assert (
        len(re.findall(r"landbird +roofs +4\* ", text)) == 3
    )  # f and g0 of rebias, f of the other
    frame = rebias_dist.results(folder / "runs")
    for method in ("rebias", "group_dro"):
        results = scores(folder / "runs" / method)["checkpoints"]["best"]["splits"]["test"]
        (row,) = frame.query("method == @method & checkpoint == 'best' & network == 'f'").to_dict(
            "records"
        )
        f = results["networks"]["f"]
        worst = f["worst_group"]
        assert row["worst_group"] == worst["accuracy"]
        assert row["worst_group_name"] == f"{worst['class']}, {worst['value']}"
        assert row["groups"] == f["groups"]
        for name in ("aligned", "conflicting", "follows_bias"):
            assert row[name] == pytest.approx(f[name])
        assert f"{100 * worst['accuracy']:.1f}*<" in (tmp_path / "results.html").read_text()
    for page in ("results.html", "results.md"):
        shown = html.unescape((tmp_path / page).read_text())
        assert shown.count(f"* {LEFT_OUT}") == 3  # tables of results, of measures and of groups
    with (tmp_path / "results-groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(frame)
    assert {(row["class"], row["value"]) for row in rows} == {(b, p) for b in BIRDS for p in PLACES}


def test_the_archive_has_the_figures_and_settings_of_the_runs(place, tmp_path):
    folder, _ = place
    assert report.main([str(folder / "runs"), "--archive", str(tmp_path / "kept")]) == 0
    told = []
    for runs in (folder / "runs", tmp_path / "kept"):
        assert report.main([str(runs), "--out", str(tmp_path / "out")]) == 0
        texts = [path.read_text() for path in sorted((tmp_path / "out").glob("*.csv"))]
        texts.append(rebias_dist.results(runs).drop(columns="folder").to_csv())
        texts.append((tmp_path / "out/results.md").read_text())
        told.append([text.replace(f"{folder}/", "") for text in texts])
    assert told[0] == told[1]
    options = json.loads((tmp_path / "kept/rebias/shards.json").read_text())["options"]
    assert options["samples_per_shard"] == 50
