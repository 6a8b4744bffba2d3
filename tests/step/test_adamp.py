"""Our AdamP against the package that defines it."""

import copy

import adamp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rebias_dist.step.adamp import AdamP
from tests.support.operations import Operations

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 7)),
        st.tuples(st.integers(1, 6), st.integers(1, 9)),
        st.tuples(*[st.integers(1, 4)] * 4),
    ),
    min_size=1,
    max_size=5,
)


def gradient(p: torch.Tensor, kind: str) -> torch.Tensor:
    """Random; or without a part along the weights, of each channel or of the whole tensor."""
    g = torch.randn_like(p)
    if kind == "channels" and p.ndim > 1:
        dims = tuple(range(1, p.ndim))
        w = p.detach()
        g -= w * (g * w).sum(dims, keepdim=True) / w.square().sum(dims, keepdim=True)
    elif kind == "whole" and p.ndim > 1:
        w = p.detach()
        g = w * torch.randn(len(p), *[1] * (p.ndim - 1), dtype=p.dtype)
        g -= w * (g * w).sum() / w.square().sum()
    return g


@settings(max_examples=60, deadline=None)
@given(
    shapes=SHAPES,
    kinds=st.lists(st.sampled_from(["random", "channels", "whole"]), min_size=1, max_size=4),
    options=st.fixed_dictionaries(
        {
            "lr": st.sampled_from([1e-3, 0.1]),
            "weight_decay": st.sampled_from([0.0, 1e-4, 0.1]),
            "delta": st.sampled_from([0.1, 0.5]),
            "eps": st.sampled_from([1e-8, 1e-3]),
        }
    ),
    seed=st.integers(0, 2**20),
)
def test_steps_are_those_of_the_package(shapes, kinds, options, seed):
    torch.manual_seed(seed)
    theirs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    ours = [p.detach().clone().requires_grad_() for p in theirs]
    published, vectorised = adamp.AdamP(theirs, **options), AdamP(ours, **options)
    for kind in kinds:
        for p, q in zip(theirs, ours, strict=True):
            p.grad = gradient(p, kind)
            q.grad = p.grad.clone()
        published.step()
        vectorised.step()
        for p, q in zip(theirs, ours, strict=True):
            torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-9)
    # What one saves the other loads.
    vectorised.load_state_dict(copy.deepcopy(published.state_dict()))
    for p, q in zip(theirs, ours, strict=True):
        q.data.copy_(p.data)
    published.step()
    vectorised.step()
    for p, q in zip(theirs, ours, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["random", "channels", "whole"])
def test_each_verdict_shows(kind):
    """A control: the three kinds of gradient lead to three different updates."""
    torch.manual_seed(0)
    p = torch.randn(6, 50, dtype=torch.float64).requires_grad_()
    before = p.detach().clone()
    p.grad = gradient(p, kind)
    AdamP([p]).step()
    moved = p.detach() - before
    by_channel = float(((moved * before).sum(1).abs() / moved.norm(dim=1)).max())
    whole = float((moved * before).sum().abs() / moved.norm())
    print(f"{kind}: along the weights {by_channel:.1e} in a channel, {whole:.1e} in all")
    assert (by_channel < 1e-6) == (kind == "channels")
    assert (whole < 1e-6) == (kind in ("channels", "whole"))


@pytest.mark.parametrize("of_gradient", [torch.channels_last, torch.contiguous_format])
def test_any_memory_format(of_gradient):
    torch.manual_seed(0)
    theirs = nn.Conv2d(5, 7, 3)
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    published, vectorised = (
        cls(net.parameters(), weight_decay=0.1)
        for cls, net in ((adamp.AdamP, theirs), (AdamP, ours))
    )
    for _ in range(3):
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            # Autograd takes the layout of the weights; a gradient set by hand has its own.
            q.grad = None
            layout = of_gradient if p.ndim == 4 else torch.contiguous_format
            q.grad = p.grad.clone(memory_format=layout)
        published.step()
        vectorised.step()
        # Both go on from a state saved by a network of another layout.
        vectorised.load_state_dict(copy.deepcopy(published.state_dict()))
    assert ours.weight.is_contiguous(memory_format=torch.channels_last)
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)


def test_the_verdicts_stay_on_the_device():
    """The host reads no value of a tensor: on CUDA each would be a wait."""
    parameters = [torch.randn(6, 50), torch.randn(4, 3, 3, 3), torch.randn(5)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = AdamP(parameters, weight_decay=0.1)
    optimizer.step()
    with Operations() as found:
        optimizer.step()
    assert found.by_name["segment_reduce"] > 0
    assert not found.by_name.keys() & {"item", "_local_scalar_dense", "nonzero"}
