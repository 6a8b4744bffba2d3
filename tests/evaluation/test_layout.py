"""The same figures on any number of ranks, each sample once, and against a slow evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.images.clusters import read_clusters
from rebias_dist import models
from rebias_dist.config.bias import BiasRule
from rebias_dist.data import ShardDataset, identity
from rebias_dist.data.normalisation import Normalise
from rebias_dist.errors import DataError
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.predictions import predict
from rebias_dist.evaluation.splits import evaluate_split
from rebias_dist.evaluation.unbiased import cell_counts, cell_mean
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.step.precision import Precision
from tests.distributed.ranks import run_ranks
from tests.evaluation.photographs import write

PRECISION = Precision("float32", torch.device("cpu"))


def networks(classes: int = 3) -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    kernels = {"f": 3, "g0": 1, "g1": 1}
    return {
        name: models.build("simple_convnet", num_classes=classes, kernel_size=k, width=0.5)
        for name, k in kernels.items()
    }


def evaluator(networks, dataset: ShardDataset, batch: int, hsic_samples: int) -> Evaluator:
    normalise = Normalise(dataset.manifest.normalize, torch.device("cpu"))
    rule = BiasRule.by_number(dataset.manifest.classes)
    settings = (batch, identity, 0, normalise, PRECISION, hsic_samples)
    return Evaluator(networks, *settings, Consensus(), rule)


def figures(folder: Path, batch: int, classes: int = 3, **more):
    torch.set_num_threads(1)
    dataset = ShardDataset(folder)
    return evaluate_split(evaluator(networks(classes), dataset, batch, 40), dataset, None, **more)


def all_figures(cases: list[tuple[Path, int]]):
    return [figures(folder, batch, with_intervals=True) for folder, batch in cases]


def test_one_two_and_three_ranks_find_identical_figures(tmp_path):
    # The last size leaves ranks without a sample.
    cases = [
        (write(tmp_path, f"val{n}", [i % 3 for i in range(n)], with_clusters=True), batch)
        for n, batch in ((61, 8), (37, 5), (9, 16))
    ]
    alone = all_figures(cases)
    assert [found["samples"] for found in alone] == [61, 37, 9]
    for found in alone:
        for of_network in found["networks"].values():
            assert np.sum(of_network["confusion"]) == found["samples"]
    for world in (2, 3):
        for found in run_ranks(world, all_figures, cases):
            assert found == alone


def test_the_figures_are_those_of_one_image_after_the_other(tmp_path):
    folder = write(tmp_path, "val", [i % 3 for i in range(61)], with_clusters=True)
    found = figures(folder, 61)
    dataset = ShardDataset(folder)
    normalise = Normalise(dataset.manifest.normalize, torch.device("cpu"))
    clusterings = read_clusters(folder, dataset._index)
    assert (clusterings < 0).sum() == 2 * 9
    for name, network in networks().items():
        network.eval()
        with torch.no_grad():
            said = [int(network(normalise(dataset.image(i)[None]))[0].argmax()) for i in range(61)]
        right = np.array(said) == dataset.labels
        assert found["networks"][name]["correct"] == right.sum()
        means = [cell_mean(*cell_counts(dataset.labels, right, c)) for c in clusterings]
        assert found["networks"][name]["unbiased"] == pytest.approx(np.mean(means))
        of_clustering = found["networks"][name]["clusterings"]
        assert [c["samples"] for c in of_clustering] == [52, 52]


def test_networks_of_more_classes_choose_among_those_of_the_split(tmp_path):
    folder = write(tmp_path, "test", [i % 3 for i in range(20)])
    dataset = ShardDataset(folder)
    columns = [4, 0, 2]
    said = predict(evaluator(networks(6), dataset, 8, 5), dataset, columns)
    normalise = Normalise(dataset.manifest.normalize, torch.device("cpu"))
    images = torch.stack([dataset.image(i) for i in range(20)])
    for name, network in networks(6).items():
        network.eval()
        with torch.no_grad():
            logits, features = network(normalise(images))
        share = logits.double()[:, columns].softmax(1)
        assert said.predicted[name].tolist() == share.argmax(1).tolist()
        np.testing.assert_allclose(said.confidence[name], share.max(1).values, rtol=1e-4)
        np.testing.assert_allclose(said.features[name], features[:5], rtol=1e-4, atol=1e-5)


def test_networks_are_in_their_mode_again(tmp_path):
    folder = write(tmp_path, "test", [0, 1, 2])
    dataset = ShardDataset(folder)
    both = networks()
    both["g0"].eval()
    (folder / dataset.manifest.shards[0].name).write_bytes(b"")
    with pytest.raises(DataError):
        predict(evaluator(both, dataset, 2, 2), dataset)
    assert [network.training for network in both.values()] == [True, False, True]


def test_damaged_clusters_and_an_empty_split_are_one_line(tmp_path):
    folder = write(tmp_path, "val", [i % 3 for i in range(20)], with_clusters=True)
    (folder / "clusters.csv").write_text("key,cluster1\nnobody,1\n")
    with pytest.raises(DataError, match=r"clusters.csv:2: .* is no key of the split") as error:
        figures(folder, 8)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="has no samples"):
        figures(write(tmp_path, "none", []), 8)
