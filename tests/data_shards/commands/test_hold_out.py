"""--hold-out and --splits of convert table never go without an effect in silence."""

import pytest

from data_shards.__main__ import cli
from data_shards.format.manifest import load_split
from tests.data_shards.sources import birds


def command(table, output, *more):
    return ["convert", "table", str(table), "--output", str(output), "--workers", "1", *more]


def write(root, words):
    """A table with an image of one of two classes for each of ``words``, which say its split."""
    rows = [(f"{n}.jpg", ("cat", "dog")[n % 2], word) for n, word in enumerate(words)]
    birds.write_images(root, [path for path, *_ in rows])
    return birds.write_table(root / "two.csv", [("path", "label", "split"), *rows])


TRAIN = ["train"] * 24


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (TRAIN, ["--hold-out", "test=0.01"], "test=0.01: is less than one image of each class, so"),
        (TRAIN, ["--hold-out", "test=0.01"], "takes none of the 24 training images; give a larger"),
        (
            TRAIN,
            ["--hold-out", "selection=0.25,test=0.01"],
            "test=0.01: is less than one image of each class, so it takes none of the 18 training",
        ),
        (TRAIN, ["--hold-out", "test=0.99"], "test=0.99: takes all 24 training images that are"),
        (
            ["train2", "test"] * 12,
            ["--splits", "train2=tr,test=test", "--hold-out", "selection=0.1"],
            "selection=0.1: the split train, which it takes from, has 0 images; there are test, tr:"
            " name one of them train (--splits does it for a table), or leave --hold-out out",
        ),
    ],
)
def test_a_part_without_an_effect_is_one_line_and_writes_nothing(
    tmp_path, capsys, words, more, said
):
    assert cli(command(write(tmp_path, words), tmp_path / "out", *more)) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


def test_the_cures_work(tmp_path):
    table, out = write(tmp_path, TRAIN), tmp_path / "out"
    assert cli(command(table, out, "--hold-out", "selection=0.25,test=0.1")) == 0
    assert [load_split(out / s)[0].samples for s in ("train", "selection", "test")] == [16, 6, 2]
    table, out = write(tmp_path / "other", ["train2", "test"] * 12), tmp_path / "named"
    more = ["--splits", "train2=train,test=test", "--hold-out", "selection=0.1"]
    assert cli(command(table, out, *more)) == 0
    assert load_split(out / "selection")[0].samples == 1


def test_a_word_of_splits_that_no_row_has_is_a_warning(tmp_path, capsys):
    table = write(tmp_path, ["tr", "te"] * 4)
    more = ["--splits", "tr=train,va=selection,te=test", "--dry-run"]
    assert cli(command(table, tmp_path / "out", *more)) == 0
    said = "warning: train: --splits va=selection: no row has the word 'va', so it names no image\n"
    assert said in capsys.readouterr().err
    table = write(tmp_path / "numbers", ["0", "2.0"] * 4)
    more = ["--splits", "0=train,1=selection,2=test", "--dry-run"]
    assert cli(command(table, tmp_path / "out", *more)) == 0
    shown = capsys.readouterr().err
    assert "--splits 1=selection: no row has the word '1'" in shown
    assert shown.count("--splits") == 1
