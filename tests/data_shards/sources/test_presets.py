"""Each preset reads a small tree of the form in which its data set was published."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from data_shards.__main__ import cli
from data_shards.commands.tables import add_preset_arguments, preset_example
from data_shards.errors import UsageError
from data_shards.format.manifest import load_split
from data_shards.sources.labelled import HoldOut
from data_shards.sources.presets import PRESETS, preset_listings
from tests.data_shards.sources.birds import write_images

# {path: (split, class, words of the attributes)} of each image that a preset finds in its tree.
Truth = dict[str, tuple[str, str, tuple[str, ...]]]
SPLITS = ("train", "selection", "test")


def waterbirds(root: Path) -> Truth:
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    truth: Truth = {}
    for n in range(12):
        path = f"{n:03d}.Some_bird/Bird_{n}.jpg"
        y, place, split = n % 2, n // 2 % 2, n // 4
        lines.append(f"{n},{path},{y},{split},{place},/o/ocean/{n}.jpg")
        words = (("landbird", "waterbird")[y], (("land", "water")[place],))
        truth[path] = (SPLITS[split], *words)
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return truth


def celeba(root: Path) -> Truth:
    names = ["Blond_Hair", "Heavy_Makeup", "Male"]
    attributes = ["9", " ".join(names)]
    partition = []
    truth: Truth = {}
    for n in range(9):
        name = f"{n + 1:06d}.jpg"
        blond, makeup, male = (1 if n >> bit & 1 else -1 for bit in range(3))
        attributes.append(f"{name}  {blond}  {makeup} {male} ")
        partition.append(f"{name} {n // 3}")
        bias = "Male" if male == 1 else "not Male"
        target = "Blond_Hair" if blond == 1 else "not Blond_Hair"
        truth[f"Img/img_align_celeba/{name}"] = (SPLITS[n // 3], target, (bias,))
    for folder, name, lines in (
        ("Anno", "list_attr_celeba.txt", attributes),
        ("Eval", "list_eval_partition.txt", partition),
    ):
        (root / folder).mkdir()
        (root / folder / name).write_text("\r\n".join(lines) + "\r\n")
    return truth


def urbancars(root: Path) -> Truth:
    truth: Truth = {}
    for folder, split, ratio in (
        ("train", "train", 0.95),
        ("val", "selection", 0.5),
        ("test", "test", 0.5),
    ):
        for n in range(8):
            car, back, beside = (("urban", "country")[n >> bit & 1] for bit in range(3))
            group = f"obj-{car}_bg-{back}_co_occur_obj-{beside}"
            above = f"urbancars/bg-{ratio}_co_occur_obj-{ratio}/{folder}/{group}"
            truth[f"{above}/000.jpg"] = (split, car, (back, beside))
            write_images(root, [f"{above}/000_mask.png"])
    return truth


def released(name: str, form: str) -> Truth:
    truth: Truth = {}
    folders = {"align": "train", "conflict": "train", "valid": "selection", "test": "test"}
    for folder, split in folders.items():
        for n in range(4):
            label = n % 2
            bias = 1 - label if folder == "conflict" else label
            versions = ("train",) if form == "flat" else ("train", "selection")
            above = f"1pct/{folder}" if split in versions else folder
            below = "" if form == "flat" and split != "train" else f"{label}/"
            path = f"{name}/{above}/{below}{n}_{label}_{bias}.png"
            truth[path] = (split, str(label), (str(bias),))
    return truth


def bffhq(root: Path) -> Truth:
    return released("bffhq", "flat")


def cifar10_c(root: Path) -> Truth:
    return released("cifar10c", "variants")


def colored_mnist(root: Path) -> Truth:
    return released("cmnist", "variants")


def utkface(root: Path) -> Truth:
    races = ("White", "Black", "Asian", "Indian", "Others")
    truth: Truth = {}
    for n in range(10):
        age = 13 * n % 117
        name = f"UTKFace/{age}_{n % 2}_{n % 5}_2017010920{n:07d}.jpg.chip.jpg"
        decade = f"{age // 10}0-{age // 10}9" if age > 9 else "0-9"
        truth[name] = ("train", ("male", "female")[n % 2], (races[n % 5], decade))
    write_images(root, ["UTKFace/61_1_20170109142408075.jpg.chip.jpg"])  # its race is missing
    return truth


def bar(root: Path) -> Truth:
    return {
        f"{split}/{action}_{n}.jpg": (split, action.removeprefix("pole "), ())
        for split, n in (("train", 0), ("test", 400))
        for action in ("climbing", "diving", "fishing", "racing", "throwing", "pole vaulting")
    }


def imagenet9_background(root: Path) -> Truth:
    return {
        f"bg_challenge/{split}/val/{folder}/fg_n0{n}.JPEG": (split, folder[3:], ())
        for split in ("original", "mixed_rand", "only_fg")
        for n, folder in enumerate(["00_dog", "02_wheeled vehicle", "08_fish"])
    }


TREES = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(waterbirds, celeba, urbancars, bffhq, cifar10_c, colored_mnist),
        *(utkface, bar, imagenet9_background),
    )
}


def grow(root: Path, name: str) -> Truth:
    root.mkdir(exist_ok=True)
    truth = TREES[name](root)
    write_images(root, list(truth))
    return truth


def read(listings):
    """What :func:`preset_listings` returns, in the form of the truth."""
    found: Truth = {}
    for listing in listings:
        for item in listing.items:
            values = listing.attributes.values()
            words = tuple(names[n] for names, n in zip(values, item.attributes, strict=True))
            found[item.source] = (listing.split, listing.classes[item.label], words)
    return found


def test_every_preset_has_a_tree():
    assert list(TREES) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_tree_as_it_was_published_is_read(tmp_path, name):
    truth = grow(tmp_path, name)
    preset = PRESETS[name]
    listings = preset_listings(preset, tmp_path)
    assert read(listings) == truth
    for listing in listings:
        assert listing.dataset == name
        assert tuple(listing.attributes) == preset.attributes
        expected = preset.expected.get(listing.split)
        if expected is not None:
            told = f"{len(listing.items)} images, but {expected:,} are published"
            assert any(told in line for line in listing.warnings)


@pytest.mark.parametrize("name", PRESETS)
def test_another_tree_is_refused_with_the_expected_one(tmp_path, name):
    write_images(tmp_path, ["cats/1.jpg"])
    with pytest.raises(UsageError) as caught:
        preset_listings(PRESETS[name], tmp_path)
    assert f"does not look like {name}" in str(caught.value)
    assert PRESETS[name].tree in str(caught.value)
    assert PRESETS[name].home in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_its_example_is_understood(name):
    words = shlex.split(preset_example(PRESETS[name]))
    assert words[:5] == ["python", "-m", "data_shards", "convert", name]
    parser = argparse.ArgumentParser()
    add_preset_arguments(parser, PRESETS[name])
    assert parser.parse_args(words[5:7]).source == Path(name)


def test_from_the_original_to_shards_with_one_command(tmp_path, capsys):
    truth = grow(tmp_path / "in", "waterbirds")
    command = ["convert", "waterbirds", "--source", str(tmp_path / "in"), "--workers", "1"]
    assert cli([*command, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "train       4 images" in shown.out
    assert "waterbirds train: 4 images, but 4,795 are published" in shown.err
    assert f"rebias-train --data.root {tmp_path / 'out'}\n" in shown.out
    assert cli(["verify", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert sum(load_split(tmp_path / "out" / s)[0].samples for s in SPLITS) == len(truth)
    command += ["--json", "--dry-run", "--split"]
    capsys.readouterr()
    assert cli([*command, "test", "--output", str(tmp_path / "out")]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["split"], line["state"]) == ("test", "present")
    assert cli([*command, "tset", "--output", str(tmp_path / "out")]) == 2
    assert "did you mean 'test'?" in capsys.readouterr().err


def test_kaggles_tables_of_celeba_give_the_same(tmp_path):
    truth = grow(tmp_path, "celeba")
    for table in (*tmp_path.glob("*/list_*.txt"),):
        lines = [line.split() for line in table.read_text().splitlines()]
        if table.stem == "list_attr_celeba":
            rows = [["image_id", *lines[1]], *lines[2:]]
        else:
            rows = [["image_id", "partition"], *lines]
        (tmp_path / f"{table.stem}.csv").write_text("".join(f"{','.join(r)}\n" for r in rows))
        table.unlink()
    assert read(preset_listings(PRESETS["celeba"], tmp_path)) == truth


def test_other_targets_and_biases(tmp_path):
    grow(tmp_path, "celeba")
    fields = {"target": "Heavy_Makeup", "attributes": ["Male", "Blond_Hair"]}
    first, *_ = preset_listings(PRESETS["celeba"], tmp_path, **fields)
    assert first.classes == ("not Heavy_Makeup", "Heavy_Makeup")
    assert dict(first.attributes) == {
        "Male": ("not Male", "Male"),
        "Blond_Hair": ("not Blond_Hair", "Blond_Hair"),
    }
    for wrong, words in (
        ({"target": "Blond_hair"}, "did you mean 'Blond_Hair'?"),
        ({"attributes": ["male"]}, "--attributes male: celeba has no such field"),
        ({"attributes": ["Blond_Hair"]}, "is the target"),
    ):
        with pytest.raises(UsageError, match=words):
            preset_listings(PRESETS["celeba"], tmp_path, **wrong)


def test_a_part_of_a_data_set_is_taken(tmp_path):
    truth = grow(tmp_path, "celeba")
    for path in list(truth)[1:4]:
        (tmp_path / path).unlink()
        del truth[path]
    listings = preset_listings(PRESETS["celeba"], tmp_path)
    assert read(listings) == truth
    assert "3 rows have no file and are left out" in listings[0].warnings
    write_images(tmp_path, ["Img/img_celeba/000001.jpg"])
    with pytest.raises(UsageError, match="; remove the folder that is not meant"):
        preset_listings(PRESETS["celeba"], tmp_path)


def test_versions_side_by_side_are_told_apart(tmp_path):
    truth = grow(tmp_path, "colored-mnist")
    others = {path.replace("/1pct/", "/5pct/"): rest for path, rest in truth.items()}
    write_images(tmp_path, list(others))
    preset = PRESETS["colored-mnist"]
    with pytest.raises(UsageError, match="holds 1pct, 5pct; choose one"):
        preset_listings(preset, tmp_path)
    assert read(preset_listings(preset, tmp_path, variant="1pct")) == truth
    assert read(preset_listings(preset, tmp_path, variant="5pct")) == others
    with pytest.raises(UsageError, match="did you mean '5pct'"):
        preset_listings(preset, tmp_path, variant="05pct")


def test_splits_that_are_not_there_are_held_out_by_class(tmp_path):
    names = [f"{20 + n % 3}_{n % 2}_0_{n}.jpg" for n in range(200)]
    write_images(tmp_path, names)
    preset = PRESETS["utkface"]
    parts = {"test": 0.2, "selection": 0.1}
    listings = preset_listings(preset, tmp_path, hold_out=HoldOut(parts))
    taken = {found.split: {item.source for item in found.items} for found in listings}
    assert {split: len(paths) for split, paths in taken.items()} == {
        "train": 140, "selection": 20, "test": 40,
    }  # fmt: skip
    assert set.union(*taken.values()) == set(names)
    for paths in taken.values():
        assert sum(path.split("_")[1] == "1" for path in paths) == len(paths) / 2
    again = preset_listings(preset, tmp_path, hold_out=HoldOut(parts))
    assert [found.items for found in again] == [found.items for found in listings]
    other = preset_listings(preset, tmp_path, hold_out=HoldOut(parts, seed=1))
    assert {item.source for item in other[2].items} != taken["test"]
    for wrong, words in (({"train": 0.1}, "such a split already"), ({"test": 1.0}, "below 1")):
        with pytest.raises(UsageError, match=words):
            preset_listings(preset, tmp_path, hold_out=HoldOut(wrong))
