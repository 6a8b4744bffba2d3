"""One SLURM for the session, started on first use."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A SLURM of our own; the test is skipped where there can be none."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    found = Cluster(Path(tmp_path_factory.mktemp("slurm")))
    try:
        found.start()
        yield found
    finally:
        found.stop()
