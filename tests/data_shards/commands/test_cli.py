import json
import os
import subprocess
import sys

import pytest

from data_shards.__main__ import cli
from tests.data_shards.tiny import tree, write_idx


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    write_idx(folder, train=10, test=10)
    return str(folder)


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "data_shards", *arguments],
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
    )


def test_convert_end_to_end(source, tmp_path):
    output = tmp_path / "out"
    command = ["convert", "biased-mnist", "--source", source, "--output", str(output), "--json"]
    first = _run(*command)
    assert first.returncode == 0, first.stderr
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert [line["split"] for line in lines] == [
        "train", "selection", "biased", "unbiased", "rho0",
    ]  # fmt: skip
    assert [line["samples"] for line in lines] == [90, 10, 100, 100, 100]
    assert {line["state"] for line in lines} == {"written"}
    assert (output / "rho0" / "rho0-000000.tar").is_file()
    before = tree(output)

    again = _run(*command)
    assert again.returncode == 0
    repeated = [json.loads(line) for line in again.stdout.splitlines()]
    assert {line["state"] for line in repeated} == {"present"}
    assert [line["digest"] for line in repeated] == [line["digest"] for line in lines]

    other = _run(*command, "--rho", "0.5")
    assert other.returncode == 2
    assert other.stderr.startswith("error: ")
    assert other.stderr.count("\n") == 1
    assert "different data set" in other.stderr
    assert tree(output) == before


@pytest.mark.parametrize("form", ["{}=~/{}", "{} ~/{}"])
def test_a_tilde_that_the_shell_has_left_is_the_home_folder(tmp_path, monkeypatch, capsys, form):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "mnist", train=2, test=2)
    options = [form.format("--source", "mnist"), form.format("--output", "out")]
    words = [word for option in options for word in option.split()]
    assert cli(["convert", "biased-mnist", *words, "--selection-fraction", "0"]) == 0
    assert cli(["verify", "~/out"]) == 0
    assert str(tmp_path / "out" / "train") in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mnist", "out"]


def test_help_has_an_example_and_imports_no_torch():
    script = (
        "import sys, data_shards.__main__ as m\n"
        "try: m.cli(['convert', 'biased-mnist', '--help'])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, sorted({'torch', 'webdataset', 'rebias_dist'} & set(sys.modules)))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=1000, check=True
    ).stdout
    assert shown.endswith("0 []\n")
    assert "python -m data_shards convert biased-mnist --output" in shown


def test_dry_run_writes_nothing(source, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["convert", "biased-mnist", "--source", source, "--output", str(output)]
    assert cli([*arguments, "--dry-run", "--split", "unbiased"]) == 0
    assert "unbiased: planned, 100 images, 90 with another class's colour" in (
        capsys.readouterr().out
    )
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--rho", "2"], 2, "rho is 2.0"),
        (["--source", "/nonexistent"], 2, "no such folder"),
        (["--download"], 2, "--download needs --source"),
        (["--split", "selection", "--selection-fraction", "0"], 2, "would be empty"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, capsys, arguments, code, words):
    assert cli(["convert", "biased-mnist", "--output", str(tmp_path / "o"), *arguments]) == code
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [[], ["convert"], ["convert", "biased-mnist"], ["what"]])
def test_argparse_refuses_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        cli(arguments)
    assert caught.value.code == 2


def test_damaged_source_is_a_finding(tmp_path, capsys):
    write_idx(tmp_path / "in", train=1, test=1)
    path = tmp_path / "in" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    command = ["convert", "biased-mnist", "--source", str(tmp_path / "in")]
    assert cli([*command, "--output", str(tmp_path / "o")]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_an_address_where_a_folder_is_needed_is_named(command, capsys):
    assert cli([command, "s3://photos/pets"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("; an address is for training alone: give a folder of this machine\n")
