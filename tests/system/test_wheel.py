"""The sdist is the repository; the wheel made of it works outside the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rebias_dist
from tests import ROOT


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, timeout=1000)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(sdist)], check=True, timeout=1000)
    return next(folder.glob("*.whl"))


def test_the_sdist_is_the_repository(sdist):
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    folders = ("benchmarks", "configs", "data_shards", "docs", "examples", "launch", "tests")
    files = [path for folder in (*folders, "rebias_dist") for path in ROOT.glob(f"{folder}/**/*")]
    ours = {
        str(path.relative_to(ROOT))
        for path in (*files, *ROOT.glob("*.md"), *ROOT.glob("*.toml"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours - names == set()
    assert {
        "Makefile",
        "LICENSE",
        "setup.cfg",
        "CITATION.cff",
        ".ci/run",
        ".github/workflows/ci.yml",
    } <= names


def test_changelog_and_citation_name_the_version():
    version = rebias_dist.version()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_configurations_and_class_files_are_inside_tests_are_not(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {str(p.relative_to(ROOT / "configs")) for p in ROOT.glob("configs/**/*.yaml")}
    assert {f"rebias_dist/configs/{name}" for name in configs} <= names
    modules = [
        p
        for package in ("rebias_dist", "data_shards", "launch")
        for p in ROOT.glob(f"{package}/**/*.py")
    ]
    assert {str(p.relative_to(ROOT)) for p in modules} <= names
    assert {"data_shards/classes/imagenet9.csv", "rebias_dist/py.typed"} <= names
    of_reports = ("protocols.yaml", "published.csv", "templates/report.mplstyle")
    assert {f"rebias_dist/reporting/{name}" for name in of_reports} <= names
    templates = {"job.sbatch", "torchrun.sh", "srun.sh", "array.sbatch", "env.sh", "imagenet9.sh"}
    assert {f"launch/{name}" for name in templates} <= names
    tops = {name.split("/")[0] for name in names if "dist-info" not in name}
    assert tops == {"rebias_dist", "data_shards", "launch"}


def test_it_trains_from_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
    ]
    subprocess.run([*command, str(wheel)], check=True, timeout=1000)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: str):
        return subprocess.run(
            [sys.executable, "-c", _RUN, *arguments],
            cwd=empty, env=environment, capture_output=True, text=True, timeout=1000,
        )  # fmt: skip

    printed = run("--config", "imagenet9/rebias", "--print-config")
    assert printed.returncode == 0, printed.stderr
    assert "resnet18" in printed.stdout
    assert str(site) in printed.stderr
    trained = run("--max-steps", "2")
    assert trained.returncode == 0, trained.stderr
    assert "finished after 2 steps" in trained.stderr


# Which code runs is part of what is tested: the checkout is installed here too.
_RUN = """
import sys
import rebias_dist
from rebias_dist.commands.train import cli
print(rebias_dist.__file__, file=sys.stderr)
cli()
"""
