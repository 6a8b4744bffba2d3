"""An index of ImageNet's size costs its readers next to nothing."""

from benchmarks.loader import IMAGENET, index_costs, write_index


def test_private_memory_of_readers_and_workers(tmp_path):
    costs = index_costs(write_index(tmp_path / "train", IMAGENET))
    print(", ".join(f"{name} {cost:.2g}" for name, cost in costs.items()))
    assert costs["opening private MB"] < 50
    assert costs["a worker's private MB"] < 50
