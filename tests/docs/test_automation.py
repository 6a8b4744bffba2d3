"""The files of GitHub and pre-commit: they parse, and they name targets and tools that exist."""

import configparser
import re
from typing import Any

import pytest
import yaml
from packaging.version import Version

from tests import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def load(path: Any) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_make_targets_that_exist(path):
    jobs = load(path)["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    named = [target for run in runs for target in re.findall(r"make ([a-z -]+)", run)]
    assert named
    assert {target for names in named for target in names.split()} <= TARGETS


def test_all_supported_versions_of_python_are_tested():
    jobs = load(ROOT / ".github/workflows/ci.yml")["jobs"]
    tested = jobs["test"]["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in tested)  # 3.10 would be 3.1
    prefix = "Programming Language :: Python :: 3."
    lines = setup()["metadata"]["classifiers"].splitlines()
    assert tested == [line.rpartition(" ")[2] for line in lines if line.startswith(prefix)]
    assert setup()["options"]["python_requires"] == f">={tested[0]}"


def test_the_oldest_versions_are_the_bounds():
    options = setup()
    extras = options["options.extras_require"]
    lines = options["options"]["install_requires"] + extras["gather"] + extras["s3"]
    bounds = dict(line.split(" >= ") for line in lines.strip().splitlines())
    text = (ROOT / "tests/oldest.txt").read_text()
    oldest = dict(re.findall(r"^([a-z0-9-]+) == (\S+)$", text, re.MULTILINE))
    assert {name: Version(bound) for name, bound in bounds.items()} == {
        name: Version(oldest[name]) for name in bounds
    }


def test_pre_commit_runs_what_make_lint_runs():
    (repo,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    linted = {line.split()[0].rpartition("/")[2] for line in recipe[1].strip().splitlines()}
    assert {hook["entry"].split()[0] for hook in repo["hooks"]} == {
        f".venv/bin/{tool}" for tool in linted
    }


def test_every_phony_target_is_listed_as_one():
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS
