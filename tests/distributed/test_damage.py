"""A damaged sample during training: all ranks stop with its name, or all layouts skip it alike."""

import json
import logging
import re
from pathlib import Path

import pytest

from data_shards.sources.biased_mnist import Options, convert
from rebias_dist.data import ShardDataset
from tests.data.test_damage import damage
from tests.distributed.ranks import run_ranks

STEPS, N, B = 8, 48, 12


def _train(root: str, runs_dir: str, on_damaged: str, steps: list[int]) -> dict:
    """Train up to each of ``steps``, one call after the other; say how it ended."""
    import torch.distributed as dist

    from rebias_dist.config.files import validate
    from rebias_dist.errors import RebiasError
    from rebias_dist.train import main

    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())
    logging.getLogger("rebias_dist").addHandler(handler)
    small = {"name": "simple_convnet", "width": 0.25}
    for last in steps:
        config = validate(
            {
                "name": f"{on_damaged}-{dist.get_world_size()}",
                "runs_dir": runs_dir,
                "precision": "float64",
                "global_batch": N,
                "micro_batch": B,
                "max_steps": last,
                "epochs": 1,
                "log": {"to": []},
                "f": {**small, "kernel_size": 3},
                "g": [{**small, "kernel_size": 1}],
                "radius": {"f": "median", "g": "median", "fraction": 0.3},
                "data": {"root": root, "on_damaged": on_damaged, "test_splits": ["unbiased"]},
            }
        )
        try:
            main(config)
        except RebiasError as error:
            return {"error": f"{type(error).__name__}: {error}", "code": error.exit_code}
    return {"warned": warned}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, few_digits):
    """Shards with four damaged training samples, and their keys."""
    root = tmp_path_factory.mktemp("shards")
    convert(root, Options(rho=0.8, image_size=8, samples_per_shard=60), source=few_digits)
    damaged = [0, 77, 230, 231]
    damage(root / "train", damaged)
    dataset = ShardDataset(root / "train")
    return root, [dataset.key(i) for i in damaged]


def test_skipped_alike_on_any_number_of_ranks_and_after_resuming(shards, tmp_path):
    root, keys = shards
    found = {
        world: run_ranks(world, _train, str(root), str(tmp_path), "skip", steps, timeout=1000)
        for world, steps in ((1, [STEPS]), (2, [STEPS]), (3, [4, STEPS]))
    }
    runs = {}
    for world, ranks in found.items():
        assert all("error" not in rank for rank in ranks), ranks
        # Somebody names each of them, whoever met it.
        warnings = [line for rank in ranks for line in rank["warned"]]
        named = {key for line in warnings for key in re.findall(r"sample (\S+):", line)}
        assert named == set(keys)
        text = (tmp_path / f"skip-{world}" / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        runs[world] = {line["step"]: line for line in lines if "f/loss" in line}
    compared, worst = 0, 0.0
    for world in (2, 3):
        assert runs[world].keys() == runs[1].keys() == set(range(1, STEPS + 1))
        for step, line in runs[world].items():
            for name in (name for name in line if name.split("/")[0] in ("f", "g0")):
                a, b = line[name], runs[1][step][name]
                worst = max(worst, abs(a - b) / max(abs(b), 1e-3))
                compared += 1
    print(f"{compared} losses, HSIC and radii differ by {worst:.1e}")
    assert compared > 8 * STEPS
    assert worst <= 1e-9


def test_all_ranks_stop_with_shard_and_key(shards, tmp_path):
    root, keys = shards
    ranks = run_ranks(3, _train, str(root), str(tmp_path), "stop", [STEPS], timeout=1000)
    assert {rank["code"] for rank in ranks} == {3}
    (text,) = {rank["error"] for rank in ranks}
    match = re.search(r"DataError: rank \d: (\S+): sample (\S+): altered", text)
    assert match
    assert match[2] in keys
    assert Path(match[1]).name.startswith("train-")
    assert "\n" not in text
