"""Ranks whose weights differ are found and named, on real ranks."""

import platform

import pytest
import torch
from torch import nn

from rebias_dist.config.files import validate
from rebias_dist.errors import UnequalWeightsError
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.equal_weights import check_equal_weights
from rebias_dist.ranks.placement import Placement
from rebias_dist.ranks.roll_call import facts_of, verdict
from rebias_dist.step.player import Player
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks
from tests.faults.test_policies import attempts

CPU = torch.device("cpu")


def flip_a_bit(tensor: torch.Tensor) -> None:
    """Change the lowest bit of a tensor's last number."""
    tensor.detach().view(-1).view(torch.uint8)[-tensor.element_size()] ^= 1


def _networks() -> dict[str, list[nn.Module]]:
    torch.manual_seed(0)
    f = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).double())
    f.to(memory_format=torch.channels_last)
    f.register_buffer("of_the_last_pass", torch.zeros(3))
    return {"f": [f, nn.Linear(2, 2)], "g0": [nn.Linear(2, 2).bfloat16()]}


PLACES = {
    "convolution": lambda n: n["f"][0][0].weight,
    "float64": lambda n: n["f"][0][2].bias,
    "running variance": lambda n: n["f"][0][1].running_var,
    "batches": lambda n: n["f"][0][1].num_batches_tracked,
    "heads": lambda n: n["f"][1].weight,
    "bfloat16": lambda n: n["g0"][0].weight,
    "other buffer": lambda n: n["f"][0].of_the_last_pass,
    "nothing": None,
}


def _look(changed: list[int]) -> dict[str, str]:
    consensus, said = Consensus(), {}
    for name, place in PLACES.items():
        networks = _networks()
        if place is not None and consensus.rank in changed:
            tensor = place(networks)
            flip_a_bit(tensor if tensor.ndim < 4 else tensor.permute(0, 2, 3, 1))
        try:
            check_equal_weights(networks, consensus, CPU, 7)
            said[name] = ""
        except UnequalWeightsError as error:
            said[name] = str(error)
        said[f"{name} in step"] = consensus.gather(consensus.rank)
    return said


@pytest.mark.parametrize(
    ("world", "changed", "differs", "common", "more"),
    [(3, [0], 0, 1, ";"), (4, [0, 3], 1, 0, " (and 1 more ranks differ);")],
)
def test_one_bit_is_found_wherever_it_is_and_all_ranks_say_the_same(
    world, changed, differs, common, more
):
    """The ranks that differ from most are named; of two halves, the one without rank 0."""
    first, *others = run_ranks(world, _look, changed)
    assert all(said == first for said in others)
    for place in PLACES:
        assert first[f"{place} in step"] == list(range(world))
        if place in ("nothing", "other buffer"):
            assert first[place] == ""
            continue
        network = "g0" if place == "bfloat16" else "f"
        assert first[place].startswith(f"step 7: rank {differs} ({platform.node()}, cpu) has")
        than = f"has other weights of {network} than rank {common} ({platform.node()}, cpu){more}"
        assert than in first[place]


def _drift(values: dict) -> tuple[int, str, str]:
    from _pytest.monkeypatch import MonkeyPatch

    updates = []

    def take_step(player, micro_batches):
        norm = original(player, micro_batches)
        updates.append(player.name)
        # The last update of the second epoch of eight steps, with one update of f and g each.
        if len(updates) == 32 and torch.distributed.get_rank() == 1:
            flip_a_bit(next(player.network.parameters()).permute(0, 2, 3, 1))
        return norm

    original = Player.take_step
    with MonkeyPatch.context() as patch:
        patch.setattr(Player, "take_step", take_step)
        with pytest.raises(UnequalWeightsError) as stopped:
            main(validate(values))
    return stopped.value.exit_code, str(stopped.value), updates[31]


def test_a_run_whose_ranks_differ_gives_up_at_the_evaluation(small_run, tmp_path):
    values = {**small_run, "name": "a", "evaluate": {"every_epochs": 1}}
    found = run_ranks(3, _drift, values)
    assert found[0] == found[1] == found[2]
    code, said, network = found[0]
    assert code == 3
    assert said.startswith("step 16: rank 1 (")
    assert f"has other weights of {network} than rank 0" in said
    assert attempts(tmp_path / "runs/a") == ["gave up"]


def test_a_gpu_of_another_model_is_named(monkeypatch):
    class Properties:
        uuid = "GPU-0"

    facts = []
    for rank, model in enumerate(["NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB"]):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, model=model: model)
        facts.append(facts_of(Placement(rank, 2, rank), torch.device("cuda", 0), {}))
    assert "rank 1 has device NVIDIA A100-SXM4-40GB instead of NVIDIA H100 PCIe" in str(
        verdict(facts, 2)
    )
