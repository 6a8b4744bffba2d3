"""Every small JSON file takes any bytes as damaged: no reader fails in another way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.errors import DataShardsError
from data_shards.format.manifest import load_manifest
from data_shards.format.samples import _parse
from data_shards.system.files import read_json
from launch.record.command_line import read_command_line
from launch.record.runs import look_at
from launch.sweep.results_csv import _commits, status_of
from rebias_dist.config.files import validate
from rebias_dist.errors import DataError
from rebias_dist.reporting.metrics import read_curves
from rebias_dist.reporting.runs import read_run
from rebias_dist.reporting.training_data import made_with
from rebias_dist.runs import checkpoint, results
from rebias_dist.runs.attempts import Attempts
from rebias_dist.telemetry.json_lines import JsonLines
from tests import ROOT

DAMAGED = [
    b"",
    b"\0" * 100,
    b"\xff\xfe\x00",
    b"{",
    b"[1e999]",
    b'{"step": 1e999, "size": [1e999, 1], "status": 1e999}',
    b'{"attempts": [{"from": 1e999, "outcome": "failed"}], "rollbacks": []}',
    b'{"attempts": [{"from": 0, "outcome": []}], "rollbacks": []}',
    b'{"attempts": [{"from": true, "outcome": "failed"}], "rollbacks": []}',
    b'{"attempts": [], "rollbacks": [{}]}',
    b'{"attempts": 1, "rollbacks": 1}',
    b'{"attempts": ["from"], "rollbacks": []}',
    b'{"step": NaN, "format": -Infinity}',
    b'{"step": ' + b"9" * 5000 + b"}",
    b'{"step": ' + b"9" * 400 + b', "options": {"rho": ' + b"9" * 400 + b"}}",
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b"[" * 200_000 + b"]" * 200_000,
    b'"' + b"x" * (2 << 20) + b'"',
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"{}",
    b"[null]",
]


def allowing(error: type[Exception], read: Callable[[Path], object]) -> Callable[[Path], object]:
    def refused(path: Path) -> None:
        with pytest.raises(error) as caught:
            read(path)
        assert "\n" not in str(caught.value)

    return refused


def _attempt(path: Path) -> None:
    attempts = Attempts(path.parent)
    with attempts.attempt(0, 3, lambda: 1):
        assert attempts.left_out == []
    assert Attempts(path.parent).attempts[-1]["outcome"] == "finished"


def _attempt_after(path: Path) -> None:
    """An attempt that follows one that was killed reads the last step out of state.json."""
    record = {"attempts": [{"from": 0, "outcome": "running"}], "rollbacks": []}
    (path.parent / "attempts.json").write_text(json.dumps(record))
    with Attempts(path.parent).attempt(0, 3, lambda: 1):
        pass


def _facts(path: Path) -> None:
    _parse("a", "b", path.read_bytes(), "jpg")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "attempts": ("attempts.json", _attempt),
    "last step": ("state.json", _attempt_after),
    "state": ("state.json", lambda path: look_at([path.parent])),
    "status of a cell": ("state.json", lambda path: status_of(path.parent)),
    "state in a report": ("state.json", lambda path: read_run(path.parent)),
    "results": ("results.json", allowing(DataError, results.read)),
    "results in a report": ("results.json", lambda path: read_run(path.parent)),
    "checkpoint": (
        "checkpoints/step-000000005/checkpoint.json",
        allowing(DataError, lambda path: checkpoint.load(path.parents[1], 5)),
    ),
    "best checkpoint": (
        "checkpoints/step-000000005/checkpoint.json",
        allowing(DataError, lambda path: checkpoint.choose(path.parents[1], "best")),
    ),
    "metrics": ("metrics.jsonl", lambda path: read_curves(path.parent, lambda tag: True)),
    "metrics of a resumed run": ("metrics.jsonl", lambda path: JsonLines(path, 3).close(None)),
    "metrics of a listed run": ("metrics.jsonl", lambda path: look_at([path.parent])),
    "command line": ("launcher/record.json", lambda path: read_command_line(path.parents[1])),
    "commits": ("commits.json", _commits),
    "manifest": ("manifest.json", allowing(DataShardsError, lambda p: load_manifest(p.parent))),
    "facts of a sample": ("facts.json", allowing(DataShardsError, _facts)),
    "manifest in a report": (
        "train/manifest.json",
        lambda path: made_with(path.parent, validate({"data": {"root": str(path.parents[1])}})),
    ),
    "options of shards in an archive": (
        "shards.json",
        lambda path: made_with(path.parent, validate({"data": {"root": "x"}})),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_as_damaged(tmp_path, name):
    place, read = READERS[name]
    for number, content in enumerate(DAMAGED):
        folder = tmp_path / str(number)
        shutil.copytree(ROOT / "tests/fixtures/format2/run", folder)
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        read(path)
        shutil.rmtree(folder)


def test_what_is_whole_is_read(tmp_path):
    path = tmp_path / "a.json"
    value = {"a": [1, -2.5e300, "\u03c1", None, True, {"b": []}]}
    path.write_text(json.dumps(value))
    assert read_json(path) == value
    path.write_text("[" * 100 + "]" * 100)
    assert read_json(path)
    with pytest.raises(DataShardsError, match="larger than 10 bytes"):
        read_json(path, 10)
    with pytest.raises(DataShardsError, match="cannot be read"):
        read_json(tmp_path / "none.json")
