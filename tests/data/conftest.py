import pytest

from data_shards.sources.biased_mnist import Options, convert
from tests.data_shards.tiny import write_idx


@pytest.fixture(scope="session")
def mnist_folder(tmp_path_factory):
    """300 training and 200 test digits in IDX files."""
    folder = tmp_path_factory.mktemp("mnist")
    write_idx(folder)
    return folder


@pytest.fixture(scope="session")
def shards(mnist_folder, tmp_path_factory):
    """Their five splits; ``train`` has 270 samples in seven shards."""
    folder = tmp_path_factory.mktemp("shards")
    convert(folder, Options(samples_per_shard=40), source=mnist_folder)
    return folder
