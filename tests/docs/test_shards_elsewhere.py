"""The pages on shards made elsewhere and at an address do what they say, address for address."""

import re
import shutil
from pathlib import Path

import pytest

from data_shards.__main__ import cli as shards_cli
from data_shards.classes import shipped_class_map
from data_shards.format.manifest import load_split
from rebias_dist.commands import evaluate, train
from rebias_dist.runs.checkpoint import load_choice
from tests import ROOT
from tests.data.misbehaving_server import serving
from tests.data_shards.convert.test_index import sample, write_tar
from tests.docs.lines import CASES, Command, commands_of_page
from tests.faults.test_resume_exactly import _digest
from tests.support.s3 import s3_server, use_s3

MADE, FETCHED = ROOT / "docs/shards.md", ROOT / "docs/loading.md"
OWN = ROOT / "docs/howto/own-images.md"
WEB, BUCKET = "https://example.org/", "s3://photos/"


def commands(page: Path, name: str) -> list[Command]:
    """Return the commands of a page on a data set."""
    return [c for c in commands_of_page(page) if any(name in word for word in c.words)]


def run(command: Command, web: str = "") -> None:
    """Run a command with another web server in place of that of the page."""
    words = [word.replace(WEB, f"{web}/") if web else word for word in command.words]
    if command.program == "rebias-shards":
        assert shards_cli(words) == 0, command
        return
    with pytest.raises(SystemExit) as left:
        (train if command.program == "rebias-train" else evaluate).cli(words)
    assert not left.value.code, command


def trained(name: str) -> str:
    """Return a fingerprint of the weights of a run."""
    return _digest(load_choice(Path("runs", name, "checkpoints"), "last")["players"])


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """The working folder after the script and the commands of the page on shards."""
    folder = tmp_path_factory.mktemp("reader")
    (script,) = re.findall(r"^```python\n(.*?)^```", MADE.read_text(), re.MULTILINE | re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("REBIAS_CACHE", str(folder / "cache"))
        exec(script, {})
        shutil.copytree("pets", "shards/pets")
        for command in commands(MADE, "pets"):
            run(command)
        yield folder


def test_tars_of_stock_webdataset_are_trained_on_from_a_folder_and_a_web_server(pets, capsys):
    here = trained("pets")
    assert len(load_split(pets / "pets/train")[1]) == 60
    with serving(pets) as server:
        for command in commands(FETCHED, WEB):
            run(command, server.url)
    said = f"no --config given, so this is read from {server.url}/pets:"
    assert said in capsys.readouterr().out
    assert trained("web") == here


def test_the_shards_are_trained_on_from_a_bucket(pets, monkeypatch):
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as endpoint:
        use_s3(endpoint, monkeypatch)
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("photos")
        files.put(str(pets / "pets"), "photos/pets", recursive=True)
        for command in commands(FETCHED, BUCKET):
            run(command)
    assert trained("bucket") == trained("pets")


def test_the_page_on_own_images_indexes_tars_where_they_are(pets):
    for command in commands(OWN, "shards/pets/"):
        if command.words[0] == "index":
            run(command)
    for split in ("train", "val"):
        there = load_split(pets / "shards/pets" / split)[0]
        assert there == load_split(pets / "pets" / split)[0]


def test_a_data_set_of_a_thousand_tars_is_indexed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(1024):
        path = tmp_path / f"imagenet1k-train-{number:04d}.tar"
        write_tar(path, sample(f"{number}", number % 1000, number))
    (command,) = commands(MADE, "imagenet1k-train")
    run(command)
    manifest, index = load_split(tmp_path / "shards/imagenet1k/train")
    assert (manifest.classes, len(index)) == (shipped_class_map("imagenet1k").classes, 1024)


def test_every_command_on_an_address_is_run_here():
    run_here = {*map(str, commands(FETCHED, WEB)), *map(str, commands(FETCHED, BUCKET))}
    assert {str(command) for command in CASES if command.at_address} == run_here
