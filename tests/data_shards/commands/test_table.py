"""convert table: from a table of images with bias labels to verified shards."""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas
import pytest

from data_shards.__main__ import cli
from data_shards.audit.verify import verify_split
from data_shards.commands.tables import add_arguments, listings_from
from data_shards.convert.plan import Conversion, Options
from data_shards.format.attributes import load_attributes
from data_shards.format.manifest import load_split
from tests.data_shards.sources import birds
from tests.data_shards.tiny import tree

SPLITS = ("train", "selection", "test")


def command(table, output, *more):
    return ["convert", "table", str(table), "--output", str(output), "--workers", "1", *more]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return birds.write_birds(tmp_path_factory.mktemp("birds"))


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """Shards of all splits, from one command."""
    output = tmp_path_factory.mktemp("made") / "birds"
    more = ["--attributes", "place,sex", "--samples-per-shard", "7"]
    assert cli(command(source, output, *more)) == 0
    return output


def told(output, split):
    """{path in the source: (class, place, sex, split)} of the shards, from their JSON alone."""
    found = {}
    classes = load_split(output / split)[0].classes
    for path in sorted((output / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {m.name: tar.extractfile(m).read() for m in tar}
        for name in (n for n in content if n.endswith(".json")):
            facts = json.loads(content[name])
            label = int(content[name.replace(".json", ".cls")])
            attributes = facts["attributes"]
            place, sex = attributes["place"], attributes.get("sex", "")
            assert facts["bias"] == birds.PLACES.index(place)
            found[facts["source"]] = (classes[label], place, sex, split)
    return found


def test_one_command_writes_every_row_with_its_words(made):
    found = {path: rest for split in SPLITS for path, rest in told(made, split).items()}
    assert found == {path: tuple(rest) for path, *rest in birds.rows()}
    assert cli(["verify", str(made), "--workers", "1"]) == 0


def test_all_splits_share_the_numbers_of_words(made):
    for split in SPLITS:
        manifest, index = load_split(made / split)
        assert manifest.dataset == "birds"
        assert manifest.classes == birds.BIRDS
        assert [(a.name, a.values) for a in manifest.attributes] == [
            ("place", birds.PLACES),
            ("sex", ("f", "m")),
        ]
        table = load_attributes(made / split, manifest, index)
        assert (table["place"] == index["bias"]).all()
        expected = [row for row in birds.rows() if row[4] == split]
        assert (table["sex"] == -1).sum() == sum(row[3] == "" for row in expected)
        cells = np.array(manifest.attributes[0].counts)
        for label, bird in enumerate(birds.BIRDS):
            for value, place in enumerate(birds.PLACES):
                assert cells[label, value] == sum(r[1:3] == (bird, place) for r in expected)


def test_every_form_of_the_table_gives_the_same_bytes(source, made, tmp_path):
    folder = shutil.copytree(source.parent, tmp_path / "forms")
    table = [birds.HEADER, *birds.rows()]
    marked = birds.write_table(
        folder / "bom.csv", table, quoting=1, lineterminator="\r\n", delimiter=";"
    )
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())
    birds.write_table(folder / "tabs.tsv", reversed_rows(table), delimiter="\t")
    blanks = [[f" {cell}" if number else cell for number, cell in enumerate(r)] for r in table]
    windows = [[row[0].replace("/", "\\"), *row[1:]] for row in blanks]
    birds.write_table(folder / "windows.csv", windows)
    absolute = [table[0], *([str(folder / row[0]), *row[1:]] for row in table[1:])]
    birds.write_table(folder / "absolute.csv", absolute)
    frame = pandas.DataFrame(table[1:], columns=table[0])
    frame.replace("", None).to_parquet(folder / "table.parquet")
    expected = {split: load_split(made / split)[0].recipe for split in SPLITS}
    for name in ("bom.csv", "tabs.tsv", "windows.csv", "absolute.csv", "table.parquet"):
        assert recipes(folder / name, "--attributes", "place,sex") == expected, name


def recipes(table, *more):
    """Return what decides the bytes of each split that the command would write."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = vars(parser.parse_args([str(table), *more]))
    listings = listings_from(argparse.Namespace(**given, output=Path("birds"), json=True))
    options = Options(samples_per_shard=7)
    return {found.split: Conversion(found, options).plan.recipe for found in listings}


def reversed_rows(table):
    return [table[0], *reversed(table[1:])]


def test_parts_and_merge_write_the_same_bytes(source, made, tmp_path, capsys):
    output = tmp_path / "birds"
    more = ["--attributes", "place,sex", "--samples-per-shard", "7"]
    for part in ("2/2", "1/2"):
        assert cli(command(source, output, *more, "--part", part)) == 0
    assert not (output / "train").exists()
    for split in SPLITS:
        assert cli(["merge", str(output), "--split", split, "--workers", "1"]) == 0
    assert tree(output) == tree(made)
    capsys.readouterr()
    # Other values of an attribute are another data set, though every image is the same.
    values = ["--values", "place=water,land"]
    assert cli(command(source, output, *more, *values)) == 2
    assert "holds a different data set" in capsys.readouterr().err


def test_a_conversion_that_was_killed_ends_with_the_same_bytes(source, made, tmp_path):
    more = ["--attributes", "place,sex", "--samples-per-shard", "7"]
    output = tmp_path / "birds"
    words = [sys.executable, "-m", "data_shards", *command(source, output, *more)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = output / ".train.convert" / "journal"
    while process.poll() is None and len(list(journal.glob("*.json"))) < 2:
        time.sleep(0.002)
    process.kill()
    process.wait(timeout=1000)
    assert cli(command(source, output, *more)) == 0
    assert tree(output) == tree(made)


def test_the_plan_says_how_the_table_is_read_and_how_to_train(source, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli(command(source, output, "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert not output.exists()
    for words in (
        "labels      label  (guessed; --label-column names another)",
        "attributes  place  (guessed; --attributes names another)",
        "not used    sex\n",
        "classes     2: landbird, waterbird\n",
        "train       32 images\n",
        "planned, 32 images",
    ):
        assert words in shown
    assert "train on it" not in shown
    assert cli(command(source, output)) == 0
    assert f"train on it: rebias-train --data.root {output}\n" in capsys.readouterr().out
    more = ["--attributes", "sex,place", "--split-column", ""]
    assert cli(command(source, output / "both", *more)) == 0
    shown = capsys.readouterr().out
    assert f"--data.root {output / 'both'} --data.bias sex   (or --data.bias place)\n" in shown


def test_machines_read_the_columns(source, tmp_path, capsys):
    assert cli(command(source, tmp_path / "out", "--dry-run", "--json")) == 0
    first, *splits = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["columns"]["attributes"] == ["place"]
    assert first["columns"]["unused"] == ["sex"]
    assert [split["split"] for split in splits] == list(SPLITS)


def test_inspect_shows_names_counts_and_the_majority(made, capsys):
    assert cli(["inspect", str(made / "train")]) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index("  place (* is the majority of its class)")
    assert [line.split() for line in lines[begin + 1 : begin + 4]] == [
        ["label", "class", "land", "water"],
        ["0", "landbird", "12*", "4"],
        ["1", "waterbird", "4", "12*"],
    ]
    assert cli(["inspect", str(made / "train"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["attributes"]
    assert [(a["name"], a["majority"]) for a in found] == [("place", [0, 1]), ("sex", [0, 0])]
    assert found[0]["counts"] == [[12, 4], [4, 12]]


@pytest.fixture
def split(made, tmp_path):
    return shutil.copytree(made / "train", tmp_path / "train")


def reasons(folder):
    return {(f.path.removeprefix(f"{folder}/"), *f.reasons) for f in verify_split(folder)}


def test_verify_finds_what_changed_in_the_attributes(split):
    path = split / "attributes.npy"
    whole = path.read_bytes()
    table = np.load(path)
    table["sex"][0] = 1 - table["sex"][0] if table["sex"][0] >= 0 else 0
    np.save(path, table)
    assert {("attributes.npy", "altered"), ("attributes.npy", "malformed")} <= reasons(split)
    path.unlink()
    assert reasons(split) == {("attributes.npy", "missing")}
    path.write_bytes(whole[:-1])
    assert {("attributes.npy", "altered"), ("attributes.npy", "malformed")} <= reasons(split)
    assert cli(["inspect", str(split)]) == 1
    path.write_bytes(whole)
    shard = split / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b'"place": "land"', b'"place": "LAND"', 1))
    found = reasons(split)
    assert ("train-000001.tar", "altered") in found
    assert {reason for _, reason in found} == {"altered", "wrong-attributes"}


def test_a_table_with_numbers_is_named(tmp_path, capsys):
    table = [("file", "y", "place", "split")]
    for n in range(24):
        table.append((f"{n}.jpg", str(n % 3 * 5), str(n % 2), str(n // 8)))
    birds.write_images(tmp_path / "pool", [row[0] for row in table[1:]])
    path = birds.write_table(tmp_path / "tables" / "t.csv", table)
    more = ["--images", str(tmp_path / "pool"), "--splits", "0=train,1=selection,2=test"]
    assert cli(command(path, tmp_path / "plain", *more)) == 0
    manifest, index = load_split(tmp_path / "plain" / "train")
    assert manifest.classes == ("0", "5", "10")  # not 0, 10, 5
    assert manifest.attributes[0].values == ("0", "1")
    for row in index:
        number = int(row["key"])
        assert (row["label"], row["bias"]) == (number % 3, number % 2)
    assert cli(command(path, tmp_path / "few", *more, "--values", "place=land")) == 2
    assert "--values: names 1, but the place has the numbers 0, 1" in capsys.readouterr().err
    more += ["--values", "place=land,water", "--classes", "0,5,10,15"]
    assert cli(command(path, tmp_path / "named", *more)) == 0
    named, _ = load_split(tmp_path / "named" / "train")
    assert named.classes == ("0", "5", "10", "15")
    assert named.attributes[0].values == ("land", "water")
    assert "these classes have no images: 15" in capsys.readouterr().err


@pytest.mark.parametrize(("zero", "one"), [("00", "01"), ("0.0", "1.0"), ("0", "1")])
def test_classes_and_values_are_matched_to_the_numbers_of_the_table(tmp_path, zero, one):
    table = [("file", "y", "place"), *((f"{n}.jpg", zero, one) for n in range(5))]
    table.append(("5.jpg", one, zero))
    birds.write_images(tmp_path, [row[0] for row in table[1:]])
    path = birds.write_table(tmp_path / "z.csv", table)
    more = ["--classes", f"{one},{zero}", "--values", f"place={one},{zero}"]
    assert cli(command(path, tmp_path / "out", "--attributes", "place", *more)) == 0
    manifest, index = load_split(tmp_path / "out" / "train")
    assert manifest.classes == manifest.attributes[0].values == (one, zero)
    for row in index:
        is_last = row["key"] == b"5"
        assert manifest.classes[row["label"]] == (one if is_last else zero)
        assert manifest.attributes[0].values[row["bias"]] == (zero if is_last else one)


@pytest.mark.parametrize("spelling", ["0{}", "{}.0"])
def test_the_names_that_a_message_suggests_for_splits_are_taken(tmp_path, capsys, spelling):
    table = [("file", "y", "split")]
    table += [(f"{n}.jpg", "ab"[n % 2], spelling.format(n % 3)) for n in range(12)]
    birds.write_images(tmp_path, [row[0] for row in table[1:]])
    path = birds.write_table(tmp_path / "t.csv", table)
    assert cli(command(path, tmp_path / "out")) == 2
    suggested = capsys.readouterr().err.strip().partition("such as --splits ")[2]
    written = ",".join(f"{spelling.format(n)}={name}" for n, name in enumerate(SPLITS))
    for number, words in enumerate((suggested, written)):
        output = tmp_path / f"out{number}"
        assert cli(command(path, output, "--splits", words)) == 0
        assert [load_split(output / split)[0].samples for split in SPLITS] == [4, 4, 4]


def test_validation_data_under_another_name_than_selection_are_a_warning(tmp_path, capsys):
    table = [("file", "y", "place", "split")]
    for n in range(12):
        table.append((f"{n}.jpg", str(n % 2), "land", ("train", "val", "test")[n % 3]))
    birds.write_images(tmp_path / "pool", [row[0] for row in table[1:]])
    path = birds.write_table(tmp_path / "tables" / "t.csv", table)
    more = ["--images", str(tmp_path / "pool")]
    said = "warning: val: training takes this for a test split; name it selection with --splits"
    assert cli(command(path, tmp_path / "plain", *more)) == 0
    assert said in capsys.readouterr().err
    more += ["--splits", "train=train,val=selection,test=test"]
    assert cli(command(path, tmp_path / "named", *more)) == 0
    assert "test split" not in capsys.readouterr().err


def test_folders_are_classes_where_no_column_is(tmp_path):
    table = [("img", "background"), *((row[0], row[2]) for row in birds.rows(8))]
    birds.write_images(tmp_path, [row[0] for row in table[1:]])
    path = birds.write_table(tmp_path / "t.csv", table)
    assert cli(command(path, tmp_path / "out", "--name", "pets")) == 0
    manifest, index = load_split(tmp_path / "out" / "train")
    assert (manifest.dataset, manifest.classes) == ("pets", ("landbirds", "waterbirds"))
    assert len(index) == 8


def test_what_is_odd_but_allowed_is_said(tmp_path, capsys):
    desert = ("images/landbirds/100.jpg", "landbird", "desert", "", "test")
    table = [list(row) for row in birds.rows()]
    birds.write_images(tmp_path, [row[0] for row in table])
    for row in table:
        if row[1] == "waterbird" and row[4] == "train":
            row[2] = "water"
    birds.write_images(tmp_path, [desert[0]])
    blank = sum(row[3] == "" and row[4] == "train" for row in table)
    path = birds.write_table(tmp_path / "t.csv", [birds.HEADER, *table, desert])
    assert cli(command(path, tmp_path / "out", "--attributes", "place,sex")) == 0
    shown = capsys.readouterr().err
    assert "train: place: no image has class × value waterbird × land\n" in shown
    assert "test: place: train has no desert\n" in shown
    assert f"train: {blank} images have no sex, because their cells are empty\n" in shown
    manifest, _ = load_split(tmp_path / "out" / "train")
    assert manifest.attributes[0].values == ("desert", "land", "water")
    assert sum(sum(row) for row in manifest.attributes[1].counts) == manifest.samples - blank


def test_a_class_or_a_bias_that_tells_nothing_apart_is_said(tmp_path, capsys):
    table = [("path", "place", "split"), *((row[0], "land", row[4]) for row in birds.rows(8))]
    table = [(path.replace("waterbirds", "landbirds"), *rest) for path, *rest in table]
    birds.write_images(tmp_path, [row[0] for row in table[1:]])
    path = birds.write_table(tmp_path / "t.csv", table)
    assert cli(command(path, tmp_path / "out", "--dry-run")) == 0
    told = capsys.readouterr().err
    assert "train: all images have the class 'landbirds', so there is nothing to learn" in told
    assert "train: place: all images have land, so it forms no groups\n" in told
    assert told.count("\n") == 2


def test_rows_without_files_may_be_left_out(tmp_path, capsys):
    path = birds.write_birds(tmp_path)
    (tmp_path / "images/landbirds/000.jpg").unlink()
    assert cli(command(path, tmp_path / "out")) == 2
    assert "leave such rows out with --skip-missing" in capsys.readouterr().err
    assert cli(command(path, tmp_path / "out", "--skip-missing")) == 0
    assert "1 rows have no file" in capsys.readouterr().err
    assert load_split(tmp_path / "out" / "train")[0].samples == 31


OUT = ("../x.jpg", "landbird", "land", "f", "train")
LAND, WATER = birds.rows()[2], birds.rows()[3]


def bird(row, **changes):
    return [changes.get(name, cell) for name, cell in zip(birds.HEADER, row, strict=True)]


@pytest.mark.parametrize(
    ("changed", "more", "words"),
    [
        ({}, ["--label-column", "lable"], "no column 'lable' (did you mean 'label'?); it has"),
        ({}, ["--label-column", "Label"], "no column 'Label' (did you mean 'label'?); it has"),
        ({}, ["--attributes", "place,sax"], "no column 'sax' (did you mean 'sex'?); it has"),
        ({}, ["--attributes", "place,place"], "'place' must be there once"),
        ({}, ["--classes", "landbird,waterbrid"], "did you mean 'waterbrid'?"),
        ({}, ["--values", "place=land"], "the place 'water' is none of --values; add it there or"),
        ({}, ["--values", "palce=land,water"], "did you mean 'place'?"),
        (
            {},
            ["--splits", "train=train,sel=selection"],
            "selection=NAME to train=train,sel=selection",
        ),
        ({}, ["--splits", "train"], "must be two words, such as 0=train"),
        ({}, ["--splits", "a=train,a=test"], "'a' must be there once"),
        ({}, ["--hold-out", "test=0.1,test=0.2"], "'test' must be there once"),
        (
            {},
            ["--values", "place=land,water", "--values", "place=water,land"],
            "'place' must be there once",
        ),
        ({}, ["--images", "{}/nowhere"], "no such folder of images"),
        ({}, ["--name", "Birds!"], "--name Birds!"),
        ({}, ["--attributes", "path"], "has 48 values in 48 rows, so it forms no groups"),
        ({}, ["--id-column", "place"], "; name another column with --id-column, or none with"),
        ({3: LAND}, [], "birds.csv:5: the path 'images/landbirds/002.jpg' is also that of"),
        ({3: bird(WATER, place="Water")}, [], "5: the place 'Water' is written 'water' in"),
        ({3: bird(WATER, place="\x1b[2J")}, [], r"5: the place '\x1b[2J' has a character that"),
        ({3: bird(WATER, place="water ")}, [], "5: the place 'water ' is written 'water' in"),
        ({3: bird(WATER, label="WaterBird")}, [], "'WaterBird' is written 'waterbird' in"),
        ({3: bird(WATER, split="Train")}, [], "the split 'Train' is also written 'train'"),
        ({3: bird(WATER, split="a/b")}, [], "the split 'a/b' is no name for a folder"),
        ({3: bird(WATER, split="1")}, [], "the splits are numbers"),
        ({3: bird(WATER, split=" ")}, [], "birds.csv:5: the split is empty"),
        ({3: bird(WATER, label="")}, [], "birds.csv:5: the label is empty"),
        ({3: bird(WATER, path="")}, [], "birds.csv:5: the path is empty"),
        ({3: OUT}, [], "birds.csv:5: the path '../x.jpg' leads out of"),
        ({3: bird(OUT, path="/etc/passwd")}, [], "the path '/etc/passwd' leads out of"),
        (
            {3: bird(WATER, path="images/waterbirds/003.JPG")},
            [],
            "'images/waterbirds/003.JPG' in {} (did you mean 'images/waterbirds/003.jpg'?); mend",
        ),
        (
            {3: bird(WATER, path="images/waterbird/003.jpg")},
            [],
            "did you mean 'images/waterbirds/003.jpg'?",
        ),
        ({3: bird(WATER, path="birds.csv")}, [], "'birds.csv' in {}, which is hidden or no image"),
        ({3: WATER[:3]}, [], "birds.csv:5: has 3 cells for 5 columns"),
    ],
)
def test_wrong_tables_are_one_line_and_write_nothing(tmp_path, capsys, changed, more, words):
    path = birds.write_birds(tmp_path, changed)
    more = [word.format(tmp_path) for word in more]
    assert cli(command(path, tmp_path / "out", *more)) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert words.format(tmp_path) in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", "no rows"),
        ("t.csv", b"path,label\n", "no rows below its column names"),
        ("t.csv", b"path,path\na,b\n", "two columns 'path'"),
        ("t.csv", b'path,label\n"a.jpg,b\n', "t.csv:2: is not CSV"),
        ("t.csv", b"path,label\n\xff.jpg,b\n", "is not UTF-8 text (byte 11)"),
        ("t.csv", b"what,label\n5,b\n", "name it with --path-column; it has what, label"),
        ("t.csv", b"path\na.jpg\n", "'a.jpg' is in no class folder"),
        ("t.parquet", b"PAR1", "cannot be read as Parquet"),
        ("none.csv", None, "there is no such table"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, capsys, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert cli(command(tmp_path / name, tmp_path / "out")) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown


def test_parquet_without_its_library_names_the_cure(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    assert cli(command(tmp_path / "t.parquet", tmp_path / "out")) == 2
    assert "pip install 'rebias-dist[parquet]'" in capsys.readouterr().err


def test_a_link_out_of_the_images_is_refused(tmp_path, capsys):
    path = birds.write_birds(tmp_path / "in")
    inside = tmp_path / "in" / birds.rows()[3][0]
    inside.rename(tmp_path / "outside.jpg")
    inside.symlink_to(tmp_path / "outside.jpg")
    assert cli(command(path, tmp_path / "out")) == 2
    assert "is refused: link-out-of-source" in capsys.readouterr().err
