"""The evaluation command on checkpoints of the public code, and on what is no run."""

import json
import subprocess
import sys
from pathlib import Path

import munch
import numpy as np
import pytest
import torch
import yaml

from rebias_dist.assemble import build_networks, data_root, open_data
from rebias_dist.config_files import validate
from rebias_dist.runtime.consensus import Consensus
from rebias_dist.runtime.evaluation import evaluate_splits
from rebias_dist.runtime.precision import Precision


def evaluate(*arguments: str, cwd: Path):
    command = [sys.executable, "-m", "rebias_dist.evaluate", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


def public_file(path: Path, networks: dict) -> None:
    """Write networks as the public code does."""

    def prefixed(network):
        return {f"module.{key}": value for key, value in network.state_dict().items()}

    torch.save(
        {
            "f_net": prefixed(networks["f"]),
            "g_nets": [prefixed(networks["g0"])],
            "f_optimizer": {},
            "g_optimizer": {},
            "f_lr_scheduler": {},
            "g_lr_scheduler": {},
            "options": munch.munchify({"lr": 0.001, "nested": {"n_epochs": 80}}),
            "metadata": {"epoch": 7, "best_acc": np.float64(0.5)},
        },
        path,
    )


def test_a_public_checkpoint_has_the_figures_of_its_networks(small_run, tmp_path):
    from rebias_dist.assemble import Normalise

    config = validate(small_run)
    precision = Precision(config.precision, torch.device("cpu"))
    torch.manual_seed(3)
    networks = build_networks(config, 10, precision)
    public_file(tmp_path / "public.pth", networks)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_run))
    done = evaluate("public.pth", "--config", str(file), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["public"]
    data = open_data(config, data_root(config))
    expected = evaluate_splits(
        networks, config, data.tests, Normalise(data.train, precision), precision, None, Consensus()
    )
    assert found["step"] == 7
    assert found["splits"] == json.loads(json.dumps(expected))

    other = evaluate("public.pth", "--config", str(file), "--f.kernel_size", "5", cwd=tmp_path)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "extracter.0.weight" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["."], "no run here"),
        (["file.pth"], "--config"),
        (["file.pth", "--config", "biased_mnist/demo"], "file.pth"),
        ([".", "--config", "biased_mnist/demo"], "its own configuration"),
        ([], "RUN_OR_FILE"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, arguments, named):
    (tmp_path / "file.pth").write_bytes(b"not a checkpoint")
    done = evaluate(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
