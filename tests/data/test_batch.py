"""Micro-batches come out of the shared memory as they went in."""

import pickle
from collections import deque
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebias_dist.data.batch import MicroBatch, Receiver, Sender

SHAPES = st.tuples(st.integers(1, 5), st.just(3), st.integers(1, 9), st.integers(1, 9))
DTYPES = st.sampled_from([torch.uint8, torch.float32, torch.float64])


def filled(sender: Sender, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    images = sender.take(shape, dtype)
    images.copy_(torch.randint(0, 256, shape, generator=generator))
    numbers = torch.randint(-1, 1000, (3, shape[0]), generator=generator)
    return MicroBatch(images, *numbers, seed, (f"{seed}",) * (seed % 2), views=1 + seed % 2)


def assert_equal(batch: MicroBatch, expected: MicroBatch) -> None:
    assert (batch.index, batch.skipped) == (expected.index, expected.skipped)
    assert batch.views == expected.views
    for name in ("images", "labels", "bias", "samples"):
        found, wanted = getattr(batch, name), getattr(expected, name)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


@given(
    sizes=st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=12),
    slots=st.integers(1, 4),
    workers=st.integers(1, 3),
)
def test_what_is_received_is_what_was_sent(sizes, slots, workers):
    senders, receiver = [Sender(w, slots) for w in range(workers)], Receiver()
    underway: deque[tuple[object, MicroBatch]] = deque()
    received, expected = [], []

    def receive() -> None:
        parcel, batch = underway.popleft()
        received.append(receiver.open(parcel, pinned=False))
        expected.append(batch)

    for number, (shape, dtype) in enumerate(sizes):
        if len(underway) == slots * workers:
            receive()
        sender = senders[number % workers]
        batch = filled(sender, shape, dtype, number)
        # The process is this one, so the memory itself goes through the parcel.
        underway.append((sender.parcel(batch), batch._map(torch.clone)))
    while underway:
        receive()
    # Nothing that came later has touched what was received.
    for one, other in zip(received, expected, strict=True):
        assert_equal(one, other)


def test_memory_that_was_filled_again_is_noticed():
    sender, receiver = Sender(4, 2), Receiver()
    parcels = [sender.parcel(filled(sender, (2, 3, 4, 4), torch.uint8, n)) for n in range(3)]
    with pytest.raises(RuntimeError, match="worker 4 overwrote images before they were read"):
        receiver.open(parcels[0], pinned=False)
    assert receiver.open(parcels[1], pinned=False).index == 1


def test_a_worker_sends_its_memory_once():
    sender, receiver = Sender(0, 2), Receiver()
    for number in range(6):
        shape = (64, 3, 28, 28) if number < 5 else (64, 3, 32, 32)
        batch = filled(sender, shape, torch.uint8, number)
        expected = batch._map(torch.clone)
        parcel = sender.parcel(batch)
        text = bytes(ForkingPickler.dumps(parcel))
        assert (parcel.memory is None) == (number in (2, 3, 4))
        assert len(text) < 5000  # the images never travel by value
        # Unpickled as DataLoader's queue does it with what its own workers wrote.
        assert_equal(receiver.open(pickle.loads(text), pinned=False), expected)
