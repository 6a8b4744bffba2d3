"""The running buffers of BatchNorm against those that torch makes, and what each layer sees."""

import copy

import pytest
import torch
from torch import nn

from rebias_dist.step.batchnorm import RunningStatistics


def network(momentum: float | None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Conv2d(4, 5, 1),
        nn.BatchNorm2d(5, momentum=0.3),
        nn.Flatten(2),
        nn.BatchNorm1d(5, affine=False, momentum=momentum),
    )


@pytest.mark.parametrize("momentum", [0.1, None])
def test_with_one_micro_batch_the_buffers_are_those_of_torch(momentum):
    ours = network(momentum)
    theirs = copy.deepcopy(ours)
    statistics = RunningStatistics(ours)
    for _ in range(3):
        images = torch.randn(6, 3, 8, 8)
        theirs(images)
        before = copy.deepcopy(ours.state_dict())
        with statistics.protected(), torch.no_grad():  # a first pass leaves no trace
            ours(images)
        with statistics.protected(collect=True):
            loss = ours(images).square().sum()
        loss.backward()
        torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)
        statistics.commit(1)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_buffers_are_the_mean_of_those_of_the_micro_batches(momentum):
    ours = network(momentum)
    parts = torch.randn(3, 6, 3, 8, 8).unbind()
    made = []
    for part in parts:
        alone = copy.deepcopy(ours)
        alone(part)
        made.append(alone.state_dict())
    statistics = RunningStatistics(ours)
    for part in parts:
        with statistics.protected(collect=True):
            ours(part)
    statistics.commit(len(parts))
    for name, values in ours.state_dict().items():
        expected = torch.stack([state[name].double() for state in made]).mean(0)
        torch.testing.assert_close(values, expected.to(values.dtype), rtol=0, atol=0)


def test_a_discarded_update_leaves_no_trace():
    ours = network(0.1)
    before = copy.deepcopy(ours.state_dict())
    statistics = RunningStatistics(ours)
    with statistics.protected(collect=True):
        ours(torch.randn(6, 3, 8, 8))
    statistics.discard()
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)
    with statistics.protected(collect=True):
        ours(torch.zeros(6, 3, 8, 8))
    statistics.commit(1)
    assert int(ours[1].num_batches_tracked) == 1


def test_an_error_in_a_pass_restores_the_buffers():
    ours = network(0.1)
    kept = dict(ours.named_buffers())
    with pytest.raises(RuntimeError), RunningStatistics(ours).protected():
        ours(torch.randn(6, 2, 8, 8))
    assert all(buffer is kept[name] for name, buffer in ours.named_buffers())
