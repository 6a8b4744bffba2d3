"""One SLURM for the whole session, started at its first use."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Yield a SLURM for the tests; skip the test where SLURM cannot run."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    found = Cluster(Path(tmp_path_factory.mktemp("slurm")))
    try:
        found.start()
        yield found
    finally:
        found.stop()
