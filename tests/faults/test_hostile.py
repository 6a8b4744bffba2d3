"""Hostile names, configurations and checkpoints: none creates the sentinel file."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import parse_yaml, read_config_file, validate
from rebias_dist.errors import ConfigError, DataError, RebiasError
from rebias_dist.runs import checkpoint
from rebias_dist.train import main
from tests import ROOT


@pytest.fixture
def sentinel(tmp_path):
    """A file that nothing may create."""
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists()


NAMES = [
    "x; touch {sentinel}",
    "$(touch {sentinel})",
    "`touch {sentinel}`",
    "x\ntouch {sentinel}",
    "../{sentinel.name}",
    "..",
    ".",
    "",
    "/{sentinel}",
    "a/b",
    "-rf",
    "~root",
    "x\x00y",
    "a b",
    "ä",
    "x" * 300,
    "x\n",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_plain_folder_names(sentinel, name):
    name = name.format(sentinel=sentinel)
    with pytest.raises(ConfigError) as refused:
        validate({"name": name})
    assert "\n" not in str(refused.value)
    assert "\x00" not in str(refused.value)


def test_a_name_that_is_a_command_is_refused_in_one_line(sentinel, tmp_path):
    command = [sys.executable, "-m", "rebias_dist.train", "--name", f"x; touch {sentinel}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1000)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert list(tmp_path.iterdir()) == []


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
YAML = [
    BOMB,
    "a: &a [*a]",
    "seed: 1\nseed: 2",
    "data: {rho: 0.9, rho: 0.8}",
    "seed: !!python/object/apply:os.system ['touch {sentinel}']",
    "!!python/object/new:os.system ['touch {sentinel}']",
    "seed: !!python/name:os.system",
    "!!python/module:os",
    "seed: !include {sentinel}",
    "[" * 20_000,
    "{a: " * 20_000,
    "? [1, 2]\n: 3",
    "a: \x07",
    "seed: 1\n---\nseed: 2",
    "<<: {seed: 1}",
    "on: 1",
]


@pytest.mark.parametrize("text", YAML, ids=[text[:24] for text in YAML])
def test_yaml_that_is_more_than_names_and_values(sentinel, tmp_path, text):
    path = tmp_path / "hostile.yaml"
    path.write_text(text.replace("{sentinel}", str(sentinel)))
    with pytest.raises(ConfigError) as refused:
        validate(read_config_file(str(path)), str(path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_flags_are_yaml_under_the_same_rules(sentinel):
    for text in ("&a [*a]", f"!!python/object/apply:os.system ['touch {sentinel}']"):
        with pytest.raises((ConfigError, SystemExit)):
            parse_train(["--f.options", text])
    assert parse_yaml("1e-3", "") == 1e-3


@pytest.mark.parametrize("flag", ["--resume-override"])
def test_an_override_that_is_no_key(flag):
    with pytest.raises(ConfigError, match=r"did you mean optimizer.lr\?"):
        parse_train([flag, "optimizer.lt"])


@pytest.mark.parametrize("field", ["root", "source"])
@pytest.mark.parametrize("address", ["pipe:touch {}", "pipe:cat /dev/null; touch {}", "file:{}"])
def test_addresses_in_place_of_a_folder_are_not_opened(sentinel, small_run, field, address):
    data = {**small_run["data"], field: address.format(sentinel)}
    with pytest.raises(RebiasError) as refused:
        main(validate({**small_run, "data": data, "max_steps": 1}))
    assert refused.value.exit_code in (2, 3)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------------- checkpoints


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def _sealed_with(folder: Path, content: bytes) -> None:
    """Put content in place of a checkpoint's state, with a record that fits it."""
    import hashlib

    path = folder / "step-000000001"
    record = json.loads((path / "checkpoint.json").read_text())
    del record["sha256"]
    record["files"]["state.pt"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (path / "state.pt").write_bytes(content)
    (path / "checkpoint.json").write_bytes(checkpoint._sealed(record))


def test_nothing_in_a_checkpoint_is_unpickled(sentinel, tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1, "x": torch.ones(3)}, keep=2)
    torch.save({"step": 1, "x": Touch(sentinel)}, tmp_path / "zip.pt")
    torch.save({"step": 1, "x": Touch(sentinel)}, tmp_path / "old.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    with zipfile.ZipFile(tmp_path / "escape.pt", "w") as archive:
        archive.writestr("../../sentinel", "x")
        archive.writestr("archive/data.pkl", pickle.dumps(Touch(sentinel)))
    hostile = [(tmp_path / name).read_bytes() for name in ("zip.pt", "old.pt", "escape.pt")]
    hostile += [pickle.dumps(Touch(sentinel)), pickle.dumps({"step": 1, "x": Touch(sentinel)}, 0)]
    for content in hostile:
        _sealed_with(tmp_path, content)
        with pytest.raises(DataError):
            checkpoint.load(tmp_path, 1)


def _saved(**values: object) -> bytes:
    stream = io.BytesIO()
    torch.save({"step": 1, **values}, stream)
    return stream.getvalue()


def _rewritten(content: bytes, **options: object) -> bytes:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(stream, "w", **options) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return stream.getvalue()


def _shared() -> list:
    shared: list = [0]
    for _ in range(40):
        shared = [shared, shared]
    return shared


def _cycle() -> list:
    cycle: list = []
    cycle.append(cycle)
    return cycle


def _overlapping() -> bytes:
    """Many names for one member: the sum of their sizes is a multiple of the file's."""
    stream = io.BytesIO(_saved(x=torch.ones(1000)))
    with zipfile.ZipFile(stream, "a") as archive:
        (data,) = (member for member in archive.filelist if member.filename.endswith("data/0"))
        for number in range(100):
            again = copy.copy(data)
            again.filename = again.orig_filename = data.filename[:-1] + str(number + 1)
            archive.filelist.append(again)
        archive._didModify = True
    return stream.getvalue()


def bombs() -> dict[str, bytes]:
    """Small files that take much memory, or many steps, when they are read without care."""
    return {
        "shared": _saved(data=_shared(), options=_shared()),
        "shared in keys": _saved(options={(1, (2, 3)): _shared()}),
        "cycle": _saved(options=_cycle()),
        "expanded": _saved(x=torch.zeros(1).expand(1 << 40)),
        "strided": _saved(x=torch.zeros(1000).as_strided((1000, 1000), (0, 1))),
        "deflated": _rewritten(_saved(x=torch.zeros(1 << 22)), compression=zipfile.ZIP_DEFLATED),
        "one is deflated": _rewritten(_saved(x=torch.zeros(9)), compression=zipfile.ZIP_LZMA),
        "overlapping": _overlapping(),
    }


READ_BOMBS = """
import resource, sys
from pathlib import Path
from rebias_dist.errors import RebiasError
from rebias_dist.models import load_public_checkpoint
from rebias_dist.runs.checkpoint import load
def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = megabytes()
for folder in sys.argv[1:]:
    for read in (lambda: load(Path(folder), 1), lambda: load_public_checkpoint(folder + "/public")):
        try:
            read()
            print("loaded")
        except RebiasError as error:
            print(error)
    assert megabytes() - before < 64, folder
"""


def test_no_checkpoint_grows_when_it_is_read(tmp_path):
    made = bombs()
    for name, content in made.items():
        checkpoint.save(tmp_path / name, 1, {"step": 1}, keep=2)
        _sealed_with(tmp_path / name, content)
        (tmp_path / name / "public").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", READ_BOMBS, *(str(tmp_path / name) for name in made)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for own, public in zip(lines[::2], lines[1::2], strict=True):
        assert "not an intact checkpoint (" in own
        assert "is refused: it is damaged" in public
    assert len(lines) == 2 * len(made)


def test_numbers_that_are_not_numbers_in_a_record(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1}, keep=2)
    path = tmp_path / "step-000000001" / "checkpoint.json"
    for key, value in (("best_step", "../x"), ("step", "1"), ("files", []), ("format", {})):
        record = json.loads(path.read_text())
        whole = path.read_bytes()
        del record["sha256"]
        record[key] = value
        path.write_bytes(checkpoint._sealed(record))
        with pytest.raises(DataError):
            checkpoint.load(tmp_path, 1)
        path.write_bytes(whole)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError):
        checkpoint.load(tmp_path, 1)
