"""The promise: for fixed N and b, a run does not depend on the number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.ranks import run_ranks

STEPS = 20
METHODS = ("rebias", "vanilla", "biased", "rubi", "learned_mixin")


def _config(method: str, runs_dir: str, name: str, digits: str):
    from rebias_dist.config.files import validate

    small = {"name": "simple_convnet", "width": 0.25, "dropout": 0.3}
    return validate(
        {
            "name": name,
            "runs_dir": runs_dir,
            "precision": "float64",
            "global_batch": 48,
            "micro_batch": 12,
            "max_steps": STEPS,
            "epochs": 3,
            "evaluate": {"every_epochs": 2},
            "log": {"to": []},
            "method": {"name": method, "g_pretrain_epochs": int(method == "learned_mixin")},
            "f": {**small, "kernel_size": 3},
            "g": [{**small, "kernel_size": 1}],
            "radius": {"f": "median", "g": "median", "fraction": 0.1},
            "data": {"source": digits, "image_size": 8, "rho": 0.8},
        }
    )


def _train_all(runs_dir: str, digits: str) -> dict[str, dict]:
    import torch.distributed as dist

    from rebias_dist.data.shards import ShardDataset
    from rebias_dist.train import main

    world = dist.get_world_size()
    decoded: list[str] = []
    image = ShardDataset.image
    ShardDataset.image = lambda self, i, **options: (
        decoded.append(self.manifest.split),
        image(self, i, **options),
    )[1]
    found = {}
    for method in METHODS:
        decoded.clear()
        name = f"{method}-{world}"
        results = main(_config(method, runs_dir, name, digits))
        found[method] = {"train_decoded": decoded.count("train"), "results": results}
    ShardDataset.image = image
    return found


# Three ranks share the four micro-batches of a step unevenly.
WORLDS = [(1, 3), pytest.param((1, 2, 4), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def layouts(request, tmp_path_factory, few_digits):
    """Train all methods on some numbers of ranks; return the runs' folder and what ranks found."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = str(folder), str(few_digits)
    return folder, {w: run_ranks(w, _train_all, *arguments) for w in request.param}


def _metrics(folder: Path, name: str) -> list[dict]:
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("method", METHODS)
def test_same_losses_and_weights_on_any_number_of_ranks(layouts, method):
    from rebias_dist.runs.checkpoint import load_choice

    folder, found = layouts
    reference = _metrics(folder, f"{method}-1")
    state = load_choice(folder / f"{method}-1" / "checkpoints", "last")
    compared, worst_loss, worst_weight = 0, 0.0, 0.0
    for world in found.keys() - {1}:
        for a, b in zip(_metrics(folder, f"{method}-{world}"), reference, strict=True):
            assert a["step"] == b["step"]
            assert a.keys() == b.keys()
            for name in (k for k in a if k.split("/")[0] in ("f", "g0", "selection")):
                worst_loss = max(worst_loss, abs(a[name] - b[name]) / max(abs(b[name]), 1e-3))
                compared += 1
        other = load_choice(folder / f"{method}-{world}" / "checkpoints", "last")
        assert other["step"] == state["step"] == STEPS
        for player, saved in state["players"].items():
            for part in ("network", "heads"):
                for key, tensor in (saved[part] or {}).items():
                    there = other["players"][player][part][key].double()
                    scale = max(float(tensor.double().abs().max()), 1e-12)
                    difference = float((there - tensor.double()).abs().max()) / scale
                    worst_weight = max(worst_weight, difference)
    print(
        f"{method}: {compared} values, losses differ {worst_loss:.1e}, weights {worst_weight:.1e}"
    )
    assert compared > 3 * STEPS * 2
    assert worst_loss <= 1e-9
    assert worst_weight <= 1e-9


def test_a_rank_decodes_only_its_share(layouts):
    _, found = layouts
    for world, ranks in found.items():
        # Its micro-batches of 12, and no more but the sample that tells the images' shape.
        for rank, counted in enumerate(ranks):
            share = STEPS * 12 * len(range(rank, 4, world))
            assert counted["vanilla"]["train_decoded"] == share + 1, (world, rank)


def test_all_ranks_return_the_same_figures(layouts):
    _, found = layouts
    for method in METHODS:
        for ranks in found.values():
            figures = [json.dumps(rank[method]["results"]["checkpoints"]) for rank in ranks]
            assert len(set(figures)) == 1
    assert np.isfinite(
        found[1][0]["rebias"]["results"]["checkpoints"]["last"]["splits"]["unbiased"]["hsic"][0]
    )
