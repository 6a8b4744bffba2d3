"""Which rank a process is, from its environment."""

import pytest

from rebias_dist.errors import ConfigError
from rebias_dist.runtime.process_group import Placement, choose_device, resolve_placement

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_torchrun_and_a_single_process():
    assert resolve_placement(WHOLE) == Placement(rank=3, world_size=8, local_rank=1)
    assert resolve_placement({}) == Placement(0, 1, 0)
    assert resolve_placement({"MASTER_ADDR": "left over", "PATH": "/bin"}) == Placement(0, 1, 0)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_part_of_the_variables_is_refused_by_name(name):
    partial = {key: value for key, value in WHOLE.items() if key != name}
    with pytest.raises(ConfigError, match=f"^{name} missing"):
        resolve_placement(partial)


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("RANK", "8"), ("RANK", "-1")])
def test_values_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=value):
        resolve_placement({**WHOLE, name: value})


def test_the_device():
    assert choose_device("cpu", 5).type == "cpu"
