"""The page on bias labels does what it says, from its first block to inspect."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from data_shards.__main__ import cli
from data_shards.format.manifest import load_split
from data_shards.sources.presets import PRESETS
from rebias_dist.commands.train import cli as train
from tests import ROOT
from tests.docs.lines import commands_of_page

PAGE = ROOT / "docs/howto/bias-labels.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_blocks_run_from_images_to_inspect(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[1], {})
    shown = ""
    for command in commands_of_page(PAGE):
        if "table" in command.words or "shards/birds" in " ".join(command.words):
            capsys.readouterr()
            workers = [] if command.words[0] == "inspect" else ["--workers", "1"]
            assert cli([*command.words, *workers]) == 0, command
            shown += capsys.readouterr().out
    said = [line for text in blocks("text") for line in text.splitlines()]
    assert len(said) == 5
    for line in said:
        assert f"{line}\n" in shown
    assert re.search(r"landbird +\d+\* +\d+\n", shown)
    counts = np.array(load_split(tmp_path / "shards/birds/train")[0].attributes[0].counts)
    assert counts.sum() == 80
    assert (counts.diagonal() > 4 * (counts.sum(1) - counts.diagonal())).all()


def test_the_commands_of_the_readme_take_the_table_of_waterbirds(tmp_path, monkeypatch, capsys):
    """Its splits are numbers and its column of images has a name of its own."""
    monkeypatch.chdir(tmp_path)
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    (tmp_path / "birds").mkdir()
    for number in range(120):
        name = f"birds/{number}.png"
        shade = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(shade).save(tmp_path / name)
        rows.append(f"{number},{name},{number % 2},{number // 40},{number // 2 % 2},forest.jpg")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    words = [one.words for one in commands_of_page(ROOT / "README.md")]
    assert (
        cli([*next(one for one in words if one[:2] == ["convert", "table"]), "--workers", "1"]) == 0
    )
    with pytest.raises(SystemExit) as left:
        train([*next(one for one in words if "group_dro" in one), "--dry-run"])
    assert left.value.code == 0
    assert "best            chosen on selection by the accuracy of the worst group" in (
        capsys.readouterr().out
    )


def test_arrays_of_lff_become_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth = {}
    for split, name in (("train", "train"), ("valid", "test")):
        (tmp_path / "lff" / split).mkdir(parents=True)
        images = rng.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8)
        attributes = np.stack([np.arange(12) % 3, np.arange(12) % 2], axis=1).astype(np.uint8)
        np.save(tmp_path / "lff" / split / "images.npy", images)
        np.save(tmp_path / "lff" / split / "attrs.npy", attributes)
        truth[name] = (images, attributes)
    names: dict = {}
    exec(blocks("python")[0], names)
    names["export"](tmp_path / "lff", tmp_path / "out")
    words = "convert table out/table.csv --label-column digit --attributes color --workers 1"
    assert cli([*shlex.split(words), "--output", "shards/lff"]) == 0
    for name, (images, attributes) in truth.items():
        _, index = load_split(tmp_path / "shards/lff" / name)
        for row in index:
            number = int(row["key"].decode().rpartition("_")[2])
            assert [row["label"], row["bias"]] == attributes[number].tolist()
            with Image.open(tmp_path / "out" / name / f"{number:05d}.png") as image:
                assert (np.asarray(image) == images[number]).all()


def test_every_data_set_is_in_the_table():
    assert re.findall(r"^\| `convert ([a-z0-9-]+)`", PAGE.read_text(), re.MULTILINE) == [*PRESETS]
