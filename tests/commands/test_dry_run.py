"""``--dry-run`` prints the same plan whether the shards exist or not, and writes nothing."""

import pytest

from data_shards.__main__ import cli as shards
from launch.__main__ import main as launch
from launch.commands.sweep import main as sweep
from rebias_dist.assemble import data_root
from rebias_dist.commands.train import cli, parse_train

SMALL = ["--data.image_size", "8", "--global-batch", "48", "--micro-batch", "12"]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty folder: the working folder, the home and the place of the cache."""
    monkeypatch.setenv("REBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(capsys, *flags: str) -> dict[str, str]:
    with pytest.raises(SystemExit) as left:
        cli([*flags, "--dry-run"])
    assert not left.value.code
    return {line[:15].strip(): line[15:].strip() for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize("selection", ["0.1", "none"])
def test_the_plan_is_the_same_before_and_after_the_shards_are_made(
    empty, few_digits, capsys, selection
):
    flags = [*SMALL, "--data.source", str(few_digits), "--data.selection", selection]
    before = planned(capsys, *flags)
    assert not list(empty.iterdir())
    folder = data_root(parse_train(flags).config)
    after = planned(capsys, *flags)
    assert "not made yet" in before.pop("data")
    shards = len(list(folder.glob("*/*.tar")))
    assert after.pop("data") == f"biased_mnist, 1 shards in {folder}/train"
    assert before == after
    assert shards == (5 if selection == "0.1" else 4)


def test_the_plan_says_what_would_be_made_where(empty, few_digits, capsys):
    told = planned(capsys, *SMALL, "--data.source", str(few_digits))["data"]
    assert f"the run first writes 5 shards to {empty}/cache/biased_mnist-" in told
    assert told.endswith("from train-images-idx3-ubyte")


def test_a_plan_warns_of_weights_that_cannot_be_read(empty, few_digits, capsys):
    flags = [*SMALL, "--data.source", str(few_digits), "--g.0.pretrained", "missing.pth"]
    with pytest.raises(SystemExit):
        cli([*flags, "--dry-run"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("warning: g.0.pretrained: missing.pth cannot be read: No such file")


def test_a_plan_needs_no_cache_that_can_be_written(empty, few_digits, monkeypatch, capsys):
    (empty / "file").write_text("")
    monkeypatch.setenv("REBIAS_CACHE", str(empty / "file"))
    assert planned(capsys, *SMALL, "--data.source", str(few_digits))["samples"].startswith("430 ")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data.test_splits", "[val]"], "there is no split 'val'; there are train, selection"),
        (["--data.other_tests", "{far: shards/far}"], "shards/far: there are no shards here"),
        (["--global-batch", "480"], "global_batch: 480 exceeds the 430 training samples"),
        (["--data.source", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_does_not_fit_is_found_before_shards_are_made(empty, few_digits, capsys, flags, named):
    with pytest.raises(SystemExit) as left:
        cli([*SMALL, "--data.source", str(few_digits), *flags, "--dry-run"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        lambda digits: sweep(["biased_mnist/sweeps/demo", "--dry-run"]),
        lambda digits: launch(["slurm", "biased_mnist/demo", "--dry-run"]),
        lambda digits: shards(
            ["convert", "biased-mnist", "--source", digits, "--output", "out", "--dry-run"]
        ),
    ],
    ids=["sweep", "slurm", "convert"],
)
def test_every_dry_run_writes_nothing(empty, few_digits, command):
    assert command(str(few_digits)) == 0
    assert not list(empty.iterdir())
