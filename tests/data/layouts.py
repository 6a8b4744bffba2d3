"""The same steps, read by any number of ranks and workers."""

import torch

from rebias_dist.data import TrainLoader

N, B = 40, 5
SEED = 11


def loader_of(dataset, **changes):
    values = {"global_batch": N, "micro_batch": B, "seed": SEED, "window": 3}
    return TrainLoader(dataset, **{**values, **changes})


def merged(dataset, world, workers, epoch=0, start=0, **changes):
    """Return per step the micro-batches of all ranks in the order of their numbers."""
    loaders = [
        loader_of(dataset, rank=rank, world_size=world, workers=workers, **changes)
        for rank in range(world)
    ]
    per_rank = [list(loader.epoch(epoch, start)) for loader in loaders]
    steps = []
    for step in zip(*per_rank, strict=True):
        for rank, batches in enumerate(step):
            assert [b.index for b in batches] == list(range(rank, loaders[0].micro_batches, world))
        steps.append(sorted((b for batches in step for b in batches), key=lambda b: b.index))
    return steps


def assert_equal(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert [b.index for b in left] == [b.index for b in right]
        for a, b in zip(left, right, strict=True):
            assert a.views == b.views
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.bias, b.bias)
            assert torch.equal(a.samples, b.samples)
