"""Every command in the README and on the pages is one that the programs take."""

import configparser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from launch.sweep.grid import Sweep, plan_cells, read_sweep
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import list_configs, validate
from rebias_dist.config.plan import check_world
from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
SUBCOMMANDS = {"rebias-shards", "rebias-launch"}
MODULES = {
    "data_shards": "rebias-shards",
    "launch": "rebias-launch",
    "rebias_dist.train": "rebias-train",
    "rebias_dist.commands.evaluate": "rebias-evaluate",
}
SHIPPED = {name for name, _ in list_configs()}


STARTS = re.compile(
    r"(?<!\S)((?P<script>rebias-[a-z]+|launch/imagenet9\.sh)|-m (?P<module>[a-z_]+[a-z_.]*))(?!\S)"
)


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


@dataclass(frozen=True)
class Command:
    """A command of ours on a page, by its name as a console script."""

    page: Path
    program: str
    words: list[str]
    before: str
    """What stands before it on the line: torchrun, srun."""

    def __str__(self) -> str:
        return f"{self.page.name}: {self.program} {' '.join(self.words)}"[:80]

    @property
    def ranks(self) -> int:
        """Return the ranks that torchrun or srun starts, as far as numbers say."""
        per_node = re.findall(r"--(?:nproc|ntasks)[-_]per[-_]node=(\d+)", self.before)
        nodes = re.search(r"--(?:nnodes|nodes)=(\d+)", self.before)
        return max(map(int, per_node), default=1) * (int(nodes[1]) if nodes else 1)


def code_lines(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, indented ones included, without continuations."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^    .*\n)+", outside, re.MULTILINE)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(page: Path) -> Iterator[Command]:
    for line in code_lines(page):
        if (match := STARTS.search(line)) and not line.startswith("eval "):
            rest = line[match.end() :]
            if rest.count("'") % 2:  # of bash -c '…'
                rest = rest.removesuffix("'")
            program = match["script"] or MODULES.get(match["module"])
            if program is not None:  # python -m venv
                yield Command(
                    page, program, shlex.split(rest, comments=True), line[: match.start()]
                )


CASES = [command for page in PAGES for command in commands(page)]


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


@of("rebias-train")
def test_every_training_command_is_a_configuration_that_fits_its_ranks(command):
    words = [word for word in command.words if word not in ("--help", "--list-configs")]
    if words[:1] == ["--config"] and words[1] not in SHIPPED:
        words = words[2:]  # a file that the reader writes
    if "--print-config" not in words:
        check_world(parse_train(words).config, command.ranks)


@of("rebias-launch")
def test_every_launched_configuration_fits_its_ranks(command):
    subcommand, *words = command.words
    if subcommand == "slurm":
        place = words.index("--") if "--" in words else len(words)
        assert "SBATCH" in printed(command.program, subcommand, *words[:place], "--dry-run")
    if subcommand == "local":
        place = words.index("--") if "--" in words else len(words)
        config = parse_train(["--config", words[0], *words[place + 1 :]]).config
        check_world(config, int(words[words.index("--ranks") + 1]))


@of("rebias-sweep")
def test_every_sweep_exists(command, tmp_path):
    file = command.words[0]
    if file == "radius.yaml":
        (tmp_path / file).write_text(yaml_blocks(ROOT / "docs/howto/sweeps.md")[0])
        file = str(tmp_path / file)
    if "--help" not in command.words:
        assert "--config" in printed("rebias-sweep", file, "--dry-run")


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
    "page", sorted(ROOT.glob("docs/howto/own-*.md")), ids=lambda page: page.name
)
def test_the_configurations_on_the_pages_are_valid(page):
    for block in yaml_blocks(page):
        assert validate(yaml.safe_load(block))


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
