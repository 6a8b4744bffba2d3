"""Checkpoints: whole or passed over, the best kept, nothing unpickled."""

import json
import pickle

import pytest
import torch

from rebias_dist.errors import ConfigError, DataError
from rebias_dist.runs import checkpoint


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((50,), float(step)), "radii": None}


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, state(step), keep=2, best_step=10)
    assert checkpoint.steps(tmp_path) == [10, 30, 40]
    assert checkpoint.load_choice(tmp_path, "best")["step"] == 10
    assert checkpoint.load_choice(tmp_path, "last")["step"] == 40
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_damaged_ones_are_named_and_passed_over(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(step), keep=3)
    content = bytearray((tmp_path / "step-000000003/state.pt").read_bytes())
    content[len(content) // 2] ^= 1  # one bit; torch.load would not notice
    (tmp_path / "step-000000003/state.pt").write_bytes(content)
    (tmp_path / "step-000000002/checkpoint.json").unlink()
    found, damaged = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found["step"] == 1
    assert [step in line for step, line in zip(("0003", "0002"), damaged, strict=True)] == [
        True
    ] * 2
    (tmp_path / "step-000000001/state.pt").write_bytes(b"")
    with pytest.raises(DataError, match="none of 3 checkpoints is intact"):
        checkpoint.load_newest(tmp_path)


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), keep=2)
    (tmp_path / "step-000000001/state.pt").write_bytes(b"cut")
    (tmp_path / ".step-000000002").mkdir()  # what a killed save leaves
    checkpoint.save(tmp_path, 1, state(1), keep=2)
    assert checkpoint.load(tmp_path, 1)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_folder_without_checkpoints(tmp_path):
    assert checkpoint.load_newest(tmp_path) == (None, [])
    with pytest.raises(ConfigError, match="no last checkpoint yet"):
        checkpoint.load_choice(tmp_path, "last")
    checkpoint.save(tmp_path, 1, state(1), keep=2)
    with pytest.raises(ConfigError, match="no best checkpoint yet"):
        checkpoint.load_choice(tmp_path, "best")


def test_nothing_is_unpickled(tmp_path):
    import hashlib

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "sentinel"), "w"))

    folder = tmp_path / "step-000000001"
    folder.mkdir()
    for content in (pickle.dumps(Payload()), _zipped(Payload(), tmp_path)):
        (folder / "state.pt").write_bytes(content)
        files = {"state.pt": {"sha256": hashlib.sha256(content).hexdigest()}}
        (folder / "checkpoint.json").write_text(
            json.dumps({"format": 1, "best_step": None, "files": files})
        )
        with pytest.raises(DataError):
            checkpoint.load(tmp_path, 1)
    assert not (tmp_path / "sentinel").exists()


def _zipped(payload, tmp_path) -> bytes:
    torch.save(payload, tmp_path / "payload.pt")
    return (tmp_path / "payload.pt").read_bytes()
