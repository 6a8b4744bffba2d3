"""Training from an address equals training from disk; a shard that changes stops all ranks."""

import json
import os
import re
from pathlib import Path

import pytest

from data_shards.sources.biased_mnist import Options, convert
from tests.data.misbehaving_server import serving
from tests.distributed.ranks import run_ranks

STEPS = 9


@pytest.fixture(scope="module")
def shards(tmp_path_factory, few_digits):
    root = tmp_path_factory.mktemp("shards")
    convert(root, Options(rho=0.8, image_size=8, samples_per_shard=60), source=few_digits)
    return root


def _train(root: str, runs_dir: str, cache: str, cache_gb: float, steps: list[int]):
    """Train up to each of ``steps``, one call after the other; say how it ended."""
    os.environ["REBIAS_CACHE"] = cache
    from rebias_dist.config.files import validate
    from rebias_dist.errors import RebiasError
    from rebias_dist.train import main

    small = {"name": "simple_convnet", "width": 0.25}
    for last in steps:
        config = {
            "name": "run",
            "runs_dir": runs_dir,
            "global_batch": 48,
            "micro_batch": 12,
            "max_steps": last,
            "epochs": 2,
            "log": {"to": []},
            "f": {**small, "kernel_size": 3},
            "g": [{**small, "kernel_size": 1}],
            "data": {"root": root, "cache_gb": cache_gb, "window": 2},
        }
        config["data"]["test_splits"] = ["unbiased"]
        config["data"]["other_tests"] = {"further": f"{root}/rho0"}
        try:
            final = main(validate(config))
        except RebiasError as error:
            return {"error": f"{type(error).__name__}: {error}", "code": error.exit_code}
    lines = Path(runs_dir, "run", "metrics.jsonl").read_text().splitlines()
    losses = {
        told["step"]: [value for name, value in told.items() if name.split("/")[0] in ("f", "g0")]
        for told in map(json.loads, lines)
        if "f/loss" in told
    }
    return {"losses": losses, "figures": final["checkpoints"]["last"]["splits"]}


@pytest.mark.slow
def test_two_ranks_train_as_from_disk_with_a_small_cache_and_after_resuming(shards, tmp_path):
    def trained(name, root, gigabytes, steps):
        arguments = (str(tmp_path / name), str(tmp_path / f"{name}-cache"), gigabytes)
        one, other = run_ranks(2, _train, str(root), *arguments, steps)
        assert one == other
        assert len(one["losses"]) == STEPS
        return one

    disk = trained("disk", shards, 1.0, [STEPS])
    with serving(shards) as server:
        assert trained("large", server.url, 1.0, [STEPS]) == disk
        most = max(n for name, n in server.requests.items() if name.endswith(".tar"))
        assert most == 1
        assert trained("small", server.url, 1e-9, [4, STEPS]) == disk
        assert max(server.requests.values()) > 2
    files = [path for path in (tmp_path / "small-cache/fetched").glob("*.tar")]
    assert len(files) < 4


def test_a_shard_that_changes_in_mid_run_stops_all_ranks_together(shards, tmp_path):
    with serving(shards) as server:
        server.faults["train-000002.tar"] = "changed"
        arguments = (str(tmp_path), str(tmp_path / "cache"), 1e-9, [STEPS])
        ranks = run_ranks(2, _train, server.url, *arguments)
    assert {rank["code"] for rank in ranks} == {3}
    (text,) = {rank["error"] for rank in ranks}
    assert re.search(
        r"DataError: (rank \d: )?http://\S+/train/train-000002.tar: is not the file that its "
        r"manifest describes: its sha256 is [0-9a-f]{64}, not [0-9a-f]{64}; restore it",
        text,
    )
    assert "\n" not in text
