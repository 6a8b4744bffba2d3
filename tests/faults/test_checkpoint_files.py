"""Checkpoint files that are mutated, and disks that are full."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from rebias_dist.errors import DataError, RebiasError
from rebias_dist.runs import checkpoint
from rebias_dist.runs.saver import Saver
from tests.faults.processes import Started, write_config
from tests.faults.test_resume_exactly import settings

MUTATIONS = 1000


def state(step: int, values: int = 700) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "players": {"f": torch.rand(values, generator=generator)}, "radii": None}


def mutate(folder: Path, random_: random.Random) -> set[int]:
    """Change one checkpoint, or two; return their steps."""
    step = random_.choice([1, 2, 3])
    path = folder / f"step-{step:09d}" / random_.choice(["state.pt", "checkpoint.json"])
    kind = random_.choice(["flip", "cut", "append", "delete", "zero", "swap files", "swap folders"])
    other = random_.choice([k for k in (1, 2, 3) if k != step])
    if kind == "swap files":
        another = folder / f"step-{other:09d}" / path.name
        mine, theirs = path.read_bytes(), another.read_bytes()
        path.write_bytes(theirs)
        another.write_bytes(mine)
        return {step, other}
    if kind == "swap folders":
        first, second = path.parent, folder / f"step-{other:09d}"
        first.rename(folder / "aside")
        second.rename(first)
        (folder / "aside").rename(second)
        return {step, other}
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    elif kind == "cut":
        del content[random_.randrange(len(content)) :]
    elif kind == "append":
        content += random_.randbytes(random_.randrange(1, 100))
    elif kind == "zero":
        begin = random_.randrange(len(content))
        length = min(random_.randrange(1, 600), len(content) - begin)
        if not any(content[begin : begin + length]):
            length, content[begin] = 1, 1
        else:
            content[begin : begin + length] = bytes(length)
    if kind == "delete":
        path.unlink()
    else:
        path.write_bytes(content)
    return {step}


def test_no_mutated_checkpoint_is_loaded(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "whole", step, state(step), keep=3, best_step=1)
    for seed in range(MUTATIONS):
        folder = tmp_path / "mutated"
        shutil.copytree(tmp_path / "whole", folder)
        changed = mutate(folder, random.Random(seed))
        for step in changed:
            with pytest.raises(DataError):
                checkpoint.load(folder, step)
        found, passed_over = checkpoint.load_newest(folder)
        newest = max({1, 2, 3} - changed)
        assert found is not None
        assert found["step"] == newest
        assert torch.equal(found["players"]["f"], state(newest)["players"]["f"])
        assert len(passed_over) == len([k for k in changed if k > newest])
        shutil.rmtree(folder)


def test_a_replacement_killed_half_way_loses_nothing(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), keep=2)
    (tmp_path / "step-000000001").rename(tmp_path / ".step-000000001.replaced")
    found, damaged = checkpoint.load_newest(tmp_path)
    assert (found is not None, damaged) == (True, [])
    assert checkpoint.steps(tmp_path) == [1]


# ---------------------------------------------------------------------------- full disks


def test_a_full_disk_leaves_the_checkpoint_before(small_disk, monkeypatch):
    folder = small_disk / "checkpoints"
    checkpoint.save(folder, 1, state(1, 150_000), keep=2)  # 0.6 MB of 2.1
    large = state(2, 400_000)
    with pytest.raises(RebiasError, match=r"needs 1\.9 MB and 1\.5 MB are free, so 0\.4 MB are"):
        checkpoint.save(folder, 2, large, keep=2)
    assert [path.name for path in folder.iterdir()] == ["step-000000001"]
    # Where somebody else fills the disk meanwhile, the system's own error ends the writing.
    usage = shutil.disk_usage(folder)._replace(free=10**9)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        saver = Saver(folder, keep=2)
        saver.begin(2, large, None)
        saver.close()
    assert "No space left on device" in str(saver.fault())
    found, damaged = checkpoint.load_newest(folder)
    assert found is not None
    assert (found["step"], damaged) == (1, [])
    checkpoint.save(folder, 2, state(2, 100_000), keep=2)
    assert checkpoint.load(folder, 2)["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [16], indirect=True)
def test_a_run_on_a_disk_that_fills_up_ends_in_one_line_and_goes_on_later(
    small_disk, small_run, tmp_path
):
    import sys

    values = {**settings(small_run), "runs_dir": str(small_disk), "max_steps": 24}
    config = write_config(tmp_path / "small.yaml", values)
    (small_disk / "other.bin").write_bytes(bytes(16 * 2**20 - 700_000))
    command = [sys.executable, "-m", "rebias_dist.train", "--config", config, "--name", "a"]
    full = Started(command, tmp_path).end()
    assert full.code == 1, full.out
    assert len(full.errors) == 1, full.out
    assert "MB are missing; earlier checkpoints are intact" in full.errors[0]
    # Not even the small files fit any more.
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more.bin").write_bytes(bytes(2**20))
    fuller = Started(command, tmp_path).end()
    assert (fuller.code, fuller.errors) == (
        *(1, [f"rebias-train: error: {small_disk}/a/attempts.json: No space left on device"]),
    ), fuller.out
    assert "Traceback" not in fuller.out
    (small_disk / "more.bin").unlink()
    (small_disk / "other.bin").unlink()
    state, damaged = checkpoint.load_newest(small_disk / "a/checkpoints")
    assert state is not None
    assert damaged == []
    again = Started(command, tmp_path).end()
    assert again.code == 0, again.out
    assert f"continuing a after step {state['step']}" in again.out
