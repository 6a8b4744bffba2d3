"""What a step sends: as often and as much as counted, however many micro-batches a rank has."""

import pytest

from tests.distributed.ranks import run_ranks

N = 24


def _asked(b: int) -> tuple[list, list]:
    """Return the calls counted for this layout and those that gloo was asked to make."""
    import torch.distributed as dist

    from benchmarks.communication import collectives, measured, merged, sizes
    from benchmarks.step import CONVNETS, build_game

    f, g = sizes(build_game(CONVNETS, N, N // b))
    counted = [(c.kind, c.elements) for c in collectives(N, b, dist.get_world_size(), f, g)]
    return merged(counted), merged(measured(N, b, CONVNETS, 8))


def _all_asked(sizes: list[int]) -> list:
    return [_asked(b) for b in sizes]


def _pending_when_g_runs() -> list[bool]:
    """Whether f's features were still on their way at each forward of g before its update."""
    import torch.distributed as dist

    from benchmarks.step import CONVNETS, RADII, batches_of, build_game
    from rebias_dist.step import minimax

    game = build_game(CONVNETS, N, 4)
    gathered, pending = [], []
    gather, forward = minimax.gather_features, game.gs[0].forward

    def remember(features, **how):
        gathered.append(gather(features, **how))
        return gathered[-1]

    def look(images, *, gradient):
        if len(gathered) == 1:
            pending.append(gathered[0].gathered._work is not None)
        return forward(images, gradient=gradient)

    minimax.gather_features, game.gs[0].forward = remember, look
    mine = batches_of(N, 4, 8)[dist.get_rank() :: dist.get_world_size()]
    game.step(mine, 0, RADII)
    return pending


def test_features_of_f_travel_while_g_runs():
    assert run_ranks(2, _pending_when_g_runs) == [[True, True]] * 2


@pytest.mark.parametrize(
    ("world", "sizes"),
    [(2, [12, 6, 3]), pytest.param(3, [8, 6, 2], marks=pytest.mark.slow)],
)
def test_collectives_of_a_step_are_those_counted(world, sizes):
    for found in run_ranks(world, _all_asked, sizes):
        for b, (counted, asked) in zip(sizes, found, strict=True):
            assert asked == counted, f"b = {b}"
            # Neighbours merged, an update's gradient and its buffers are one all-reduce.
            assert [kind for kind, _ in asked].count("all_reduce") == 2
