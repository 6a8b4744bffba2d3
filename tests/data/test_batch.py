"""Micro-batches come out of the shared memory as they went in."""

import os
import pickle
from collections import deque
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebias_dist.data.batch import MicroBatch, Receiver, Sender, memory_files

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
    with memory_files(workers * slots) as files:
        _send_and_receive(sizes, files, slots, workers)


def _send_and_receive(sizes, files: list[int], slots: int, workers: int) -> None:
    senders, receiver = [Sender(files, w, slots) for w in range(workers)], Receiver(files)
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
        underway.append((sender.parcel(batch), batch._map(torch.clone)))
    while underway:
        receive()
    # Nothing that came later has touched what was received.
    for one, other in zip(received, expected, strict=True):
        assert_equal(one, other)


def test_memory_that_was_filled_again_is_noticed():
    with memory_files(2) as files:
        sender, receiver = Sender(files, 0, 2), Receiver(files)
        parcels = [sender.parcel(filled(sender, (2, 3, 4, 4), torch.uint8, n)) for n in range(3)]
        with pytest.raises(RuntimeError, match="a worker overwrote images before they were read"):
            receiver.open(parcels[0], pinned=False)
        assert receiver.open(parcels[1], pinned=False).index == 1


def test_images_never_travel_by_value_nor_through_a_socket():
    with memory_files(2) as files:
        sender, receiver = Sender(files, 0, 2), Receiver(files)
        for number in range(6):
            shape = (64, 3, 28, 28) if number < 5 else (64, 3, 32, 32)
            batch = filled(sender, shape, torch.uint8, number)
            expected = batch._map(torch.clone)
            # Plain pickle refuses what would need a socket. Unpickled as DataLoader's queue does
            # it with what its own workers wrote.
            text = pickle.dumps(sender.parcel(batch))
            assert len(text) < 5000
            assert_equal(receiver.open(pickle.loads(text), pinned=False), expected)


def test_the_memory_is_free_afterwards():
    with memory_files(3) as files:
        assert all(os.readlink(f"/proc/self/fd/{file}").startswith("/memfd:") for file in files)
        Sender(files, 0, 3).take((2, 3, 4, 4), torch.uint8)
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:rebias-images" not in maps
