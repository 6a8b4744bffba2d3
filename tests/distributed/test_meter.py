"""The meter on several ranks: no collective of its own, and waiting is told from working."""

import tempfile
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import run_ranks

PARTS, B = 6, 4


def _steps(metered: bool, own: list[float] | None) -> tuple[list[dict], int, list | None]:
    """Return the losses of two steps, the collectives that they took, and the sums of ``own``."""
    from contextlib import nullcontext

    import torch.distributed as dist

    from rebias_dist.methods.radii import Radii
    from rebias_dist.phases import HostClock, timed_by
    from tests.telemetry.test_meter import game_of

    rank, world = dist.get_rank(), dist.get_world_size()
    total = PARTS * B
    game, batches = game_of(PARTS, total)
    mine = batches[rank::world]
    passenger = None if own is None else torch.tensor(own, dtype=torch.float64) * (rank + 1)
    losses = []
    group = dist.distributed_c10d._get_default_group()
    before = group._get_sequence_number_for_group()
    with timed_by(HostClock()) if metered else nullcontext():
        for step in range(2):
            found = game.step(mine, step, Radii(1.0, (1.0,)))
            losses.append(found.reduce(total, passenger if step == 1 else None))
    taken = group._get_sequence_number_for_group() - before
    return losses, taken, None if passenger is None else passenger.tolist()


def _with_and_without():
    return _steps(False, None), _steps(True, [1.0, 2.5, -4.0])


@pytest.mark.parametrize("world", [2, 3])
def test_figures_ride_along_without_a_collective_of_their_own(world):
    for plain, metered in run_ranks(world, _with_and_without):
        assert plain[1] == metered[1] > 10
        ranks = sum(range(1, world + 1))
        assert metered[2] == [ranks * 1.0, ranks * 2.5, ranks * -4.0]
        for before, after in zip(plain[0], metered[0], strict=True):
            # Beside other numbers a sum over three ranks may be taken in another order.
            assert before == after if world == 2 else before == pytest.approx(after, rel=1e-14)


def _waiting_for_the_other(folder: str) -> list[str]:
    import torch.distributed as dist
    from torch import nn

    from rebias_dist.config.schema import OptimizerConfig
    from rebias_dist.phases import HostClock, timed_by
    from rebias_dist.step.player import Player
    from rebias_dist.step.precision import Precision

    store = dist.FileStore(str(Path(folder, "signals")), 2)
    switches: list[str] = []

    class Signals(HostClock):
        def switch(self, phase):
            switches.append(phase)
            if phase == "communication" and dist.get_rank() == 0:
                store.set("rank 0 waits", "")
            return super().switch(phase)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
            self.slow = False

        def forward(self, rows):
            features = self.first(rows)
            if self.slow:  # in the middle of its backward
                features.register_hook(lambda gradient: store.wait(["rank 0 waits"]))
            return self.last(features), features

    network = Network()
    precision = Precision("float32", torch.device("cpu"))
    player = Player("f", network, optimizer=OptimizerConfig(), precision=precision)
    with timed_by(Signals()):
        for local in (True, False):
            network.slow = not local and dist.get_rank() == 1
            with player.without_reduction(local):
                output = player.forward(torch.ones(2, 3), gradient=True)
                player.backward(output.logits.sum())
    return switches


def test_waiting_for_slower_ranks_is_communication_and_not_backward():
    """Were it not told while it lasts, the slow rank would wait for ever."""
    with tempfile.TemporaryDirectory() as folder:
        for switches in run_ranks(2, _waiting_for_the_other, folder, timeout=1000):
            assert switches == ["backward", "other", "backward", "communication", "other"]
