"""The figures of runs as a DataFrame."""

import json
import math

import pandas as pd
import pytest

import rebias_dist
from rebias_dist.errors import ConfigError
from tests.commands.test_report import damage_false_accuracy, damage_unfinished, method, write_run


def test_each_run_checkpoint_split_and_network_has_a_row(tmp_path):
    counts = {"biased": {"f": 900, "g0": 990}, "unbiased": {"f": 640, "g0": 100}}
    for seed in (0, 1):
        values = method("rebias", seed=seed, data={"seed": 7, "rho": 0.9}, epochs=3)
        write_run(tmp_path / f"runs/r{seed}", values, counts)
    frame = rebias_dist.results(tmp_path / "runs/*")
    keys = ["run", "checkpoint", "split", "network"]
    expected = {
        (f"r{seed}", checkpoint, split, network): n / 1000
        for seed in (0, 1)
        for checkpoint in ("last", "best")
        for split, networks in counts.items()
        for network, n in networks.items()
    }
    assert frame.set_index(keys)["accuracy"].to_dict() == expected
    assert list(frame.columns[:4]) == ["run", "folder", "status", "problem"]
    (about,) = frame[["status", "method", "setting", "rho", "epochs"]].drop_duplicates().to_numpy()
    assert about.tolist() == ["finished", "rebias", "rebias", 0.9, 3]
    seeds = frame.groupby("run")[["seed", "data.seed"]].first()
    assert seeds.to_numpy().tolist() == [[0, 7], [1, 7]]
    row = frame[(frame["split"] == "unbiased") & (frame["network"] == "f")].iloc[0]
    assert (row["samples"], row["correct"], row["chance"]) == (1000, 640, 0.1)
    assert row["standard_error"] == pytest.approx(math.sqrt(0.64 * 0.36 / 1000))
    hsic = frame.set_index("network")["hsic"]
    assert set(hsic["g0"]) == {0.01}
    assert hsic["f"].isna().all()
    assert frame["method.lambda_f"].notna().all()
    assert frame["problem"].isna().all()


def test_an_analysis_over_seeds_is_one_line(tmp_path):
    for seed, n in enumerate((500, 600, 700)):
        write_run(tmp_path / f"v{seed}", method("vanilla", seed=seed), {"unbiased": {"f": n}})
        write_run(tmp_path / f"r{seed}", method("rebias", seed=seed), {"unbiased": {"f": n + 50}})
    frame = rebias_dist.results([tmp_path / "v*", str(tmp_path / "r*")])
    last = frame[frame["checkpoint"] == "last"]
    means = last.groupby("setting")["accuracy"].agg(["mean", "std"])
    assert means.loc["rebias"].to_list() == pytest.approx([0.65, 0.1])
    assert means.loc["vanilla"].to_list() == pytest.approx([0.6, 0.1])


def test_an_oracle_is_called_one(tmp_path):
    values = method("vanilla", data={"selection": "none"})
    write_run(tmp_path / "v", values, {"unbiased": {"f": 900}}, last={"unbiased": {"f": 500}})
    frame = rebias_dist.results(tmp_path)
    accuracy = frame.set_index("checkpoint")["accuracy"]
    assert accuracy.to_dict() == {"oracle": 0.9, "last": 0.5}


@pytest.mark.parametrize("damage", [damage_false_accuracy, damage_unfinished])
def test_a_damaged_run_is_a_row_with_its_problem_and_no_figure(tmp_path, damage):
    write_run(tmp_path / "good", method("vanilla"), {"unbiased": {"f": 640}})
    damage(write_run(tmp_path / "bad", method("vanilla", seed=1), {"unbiased": {"f": 640}}))
    (tmp_path / "empty").mkdir()
    frame = rebias_dist.results(tmp_path / "*").set_index("run")
    assert frame.loc["good", "accuracy"].to_list() == [0.64, 0.64]
    for name in ("bad", "empty"):
        assert pd.isna(frame.loc[name, "accuracy"])
        assert frame.loc[name, "problem"]
    assert frame.loc["bad", "seed"] == 1
    alone = rebias_dist.results(tmp_path / "empty")
    assert alone["problem"].notna().all()


def test_names_of_settings_are_whole_however_long_they_are(tmp_path):
    """Two settings whose names begin alike are two."""
    for index in (0, 1):
        values = method("vanilla", data={"root": "x" * 300 + str(index)})
        write_run(tmp_path / str(index), values, {"unbiased": {"f": 500}})
    assert rebias_dist.results(tmp_path)["setting"].nunique() == 2


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        rebias_dist.results(tmp_path / "absent*")


def test_a_matrix_of_huge_or_ragged_counts_is_damage(tmp_path):
    for index, matrix in enumerate(([[10**30]], [[1, 2], [3]], [[-1]], [[True]])):
        run = write_run(tmp_path / str(index), method("vanilla"), {"unbiased": {"f": 640}})
        results = json.loads((run / "results.json").read_text())
        for checkpoint in results["checkpoints"].values():
            score = checkpoint["splits"]["unbiased"]["networks"]["f"]
            score |= {"bias_count": matrix, "bias_correct": matrix}
        (run / "results.json").write_text(json.dumps(results))
    frame = rebias_dist.results(tmp_path)
    assert frame["accuracy"].isna().all()
    assert frame["problem"].str.startswith("damaged (results.json: ").all()
