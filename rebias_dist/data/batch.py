"""The samples of one forward pass, and their transport from a worker process to the trainer.

By default torch puts every tensor that a worker sends into a new shared-memory file. Mapping its
pages in both processes takes up to a fifth of the time to decode a photograph; the files need
space in /dev/shm, of which a container has 64 MB; and they are handed over through a socket, for
which the receiver may wait for ever. So each worker keeps a few buffers, as many as it can have
micro-batches under way, and fills them in turn. They lie in memory files, which have no name and
which the receiver makes before it starts the workers. It copies each micro-batch out at once.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_HEAD = 64  # bytes before the images: the turn counter, alone in its cache line


@dataclass
class MicroBatch:
    """Samples of one forward pass.

    ``images`` uint8 [views · b, 3, H, W]: the first view of every sample, then the second of
    every sample, in the same order; a step may hold them normalised already. ``labels``,
    ``bias`` (-1: none) and ``samples`` (ids) int64 [b]; ``index`` is its number j within the
    step, or within the pass in evaluation; ``skipped`` has one line for each damaged sample that
    was replaced: what is wrong with it.
    """

    images: Tensor
    labels: Tensor
    bias: Tensor
    samples: Tensor
    index: int
    skipped: tuple[str, ...] = ()
    views: int = 1

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the micro-batch on ``device``; from pinned memory the copy is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """Return the micro-batch in pinned memory; already pinned tensors are not copied."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> "MicroBatch":
        return MicroBatch(
            images=function(self.images),
            labels=function(self.labels),
            bias=function(self.bias),
            samples=function(self.samples),
            index=self.index,
            skipped=self.skipped,
            views=self.views,
        )


class Carrier:
    """Brings micro-batches to a device; to a GPU beside its other work, on a stream of its own.

    Args:
        device: on which they are used, on its current stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def bring(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Return the micro-batches on the device, where the copies may still be under way."""
        if self._side is None:
            return [batch.to(self._device) for batch in batches]
        with torch.cuda.stream(self._side):
            brought = [batch.to(self._device) for batch in batches]
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._side)
        for batch in brought:
            for tensor in (batch.images, batch.labels, batch.bias, batch.samples):
                # Their memory is the side stream's, which must not reuse it while it is read.
                tensor.record_stream(current)
        return brought


@dataclass(frozen=True)
class Parcel:
    """A micro-batch in transport; its images lie in a shared buffer until it is opened.

    ``slot`` is the buffer's place among all, ``size`` its bytes. Labels, bias and sample ids
    travel by value, which costs less than shared memory of their own.
    """

    slot: int
    turn: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    numbers: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    index: int
    skipped: tuple[str, ...]
    views: int


@contextmanager
def memory_files(count: int) -> Iterator[list[int]]:
    """Make files in memory, without names, that processes forked inside the block share.

    Yields their descriptors. The memory is free again when no process has them.
    """
    files: list[int] = []
    try:
        for _ in range(count):
            files.append(os.memfd_create("rebias-images"))
        yield files
    finally:
        for file in files:
            os.close(file)


class Sender:
    """A worker's buffers, which it fills in turn.

    Args:
        files: of all workers; see :func:`memory_files`.
        worker: number of this one.
        slots: buffers of a worker.
    """

    def __init__(self, files: Sequence[int], worker: int, slots: int) -> None:
        self._files = files
        self._first = worker * slots
        self._memory: list[Tensor | None] = [None] * slots
        self._turn = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the tensor into which the next micro-batch's images are to be written.

        OSError if there is too little memory.
        """
        self._turn += 1
        slot = self._turn % len(self._memory)
        memory = self._memory[slot]
        size = _HEAD + math.prod(shape) * dtype.itemsize
        if memory is None or len(memory) < size:
            file = self._files[self._first + slot]
            os.posix_fallocate(file, 0, size)  # without it, a lack of memory is a SIGBUS
            memory = self._memory[slot] = _mapped(file, size)
        # Set before the images are written, so that a receiver still reading the old ones notices.
        _turn_of(memory).fill_(self._turn)
        return _images(memory, shape, dtype)

    def parcel(self, batch: MicroBatch) -> Parcel:
        """Return the parcel of a micro-batch whose images were written into the last ``take``."""
        slot = self._turn % len(self._memory)
        memory = self._memory[slot]
        assert memory is not None
        return Parcel(
            slot=self._first + slot,
            turn=self._turn,
            size=len(memory),
            shape=tuple(batch.images.shape),
            dtype=batch.images.dtype,
            numbers=(batch.labels.numpy(), batch.bias.numpy(), batch.samples.numpy()),
            index=batch.index,
            skipped=batch.skipped,
            views=batch.views,
        )


class Receiver:
    """Opens the parcels of one iteration; those of a worker in the order it sent them.

    Args:
        files: of all workers; see :func:`memory_files`.
    """

    def __init__(self, files: Sequence[int]) -> None:
        self._files = files
        self._memory: dict[int, Tensor] = {}

    def open(self, parcel: Parcel, *, pinned: bool) -> MicroBatch:
        """Return the micro-batch, copied out of shared memory; ``pinned``: images in pinned memory.

        RuntimeError if the worker has overwritten the images.
        """
        memory = self._memory.get(parcel.slot)
        if memory is None or len(memory) < parcel.size:
            memory = self._memory[parcel.slot] = _mapped(self._files[parcel.slot], parcel.size)
        images = torch.empty(parcel.shape, dtype=parcel.dtype, pin_memory=pinned)
        images.copy_(_images(memory, parcel.shape, parcel.dtype))
        if _turn_of(memory).item() != parcel.turn:
            raise RuntimeError("a worker overwrote images before they were read")
        labels, bias, samples = map(torch.from_numpy, parcel.numbers)
        return MicroBatch(images, labels, bias, samples, parcel.index, parcel.skipped, parcel.views)


def _mapped(file: int, size: int) -> Tensor:
    # Not Python's mmap, which keeps another descriptor of the file.
    return torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size, dtype=torch.uint8)


def _turn_of(memory: Tensor) -> Tensor:
    return memory[:8].view(torch.int64)


def _images(memory: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    end = _HEAD + math.prod(shape) * dtype.itemsize
    return memory[_HEAD:end].view(dtype).view(*shape)
